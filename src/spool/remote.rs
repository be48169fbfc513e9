//! The spool's routes on the control socket, and how the tools ask them.
//!
//! ```text
//! GET  /spool                                            how it is
//! GET  /dead-letters?after=0&most=100&device=…&reason=…  a page of them
//! GET  /dead-letters/letter?seq=7                        one, with its message
//! POST /dead-letters/replay   {"after":0,"device":"…"}   send them again; "up_to" of the answer belongs to the next page
//! POST /dead-letters/drop     {"after":0,"seq":7}        forget them
//! ```

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::Spool;
use super::ask::{Answer, Ask, Which};
use crate::control::{Asked, Client, ClientError, Reply, Router};
use crate::sas::percent;

/// The most dead letters of one page.
const MOST: usize = 500;

/// With which dead letters something is to be done. A word that is not known is refused: left out, it would mean more.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Order {
    after: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_to: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Order {
    fn of(which: &Which, after: u64, up_to: Option<u64>) -> Vec<u8> {
        let Which { seq, device, reason } = which.clone();
        // Numbers and texts: nothing of it can fail to be written.
        serde_json::to_vec(&Self { after, up_to, seq, device, reason }).unwrap_or_default()
    }

    fn which(self) -> (Which, u64, Option<u64>) {
        let Self { after, up_to, seq, device, reason } = self;
        (Which { seq, device, reason }, after, up_to)
    }
}

/// Adds the routes.
pub(crate) fn add_routes(router: &mut Router, spool: &Spool) {
    let mut add = |method, path, read: fn(&Asked) -> Result<Ask, Reply>| {
        let spool = spool.clone();
        router.add(method, path, move |asked| answer(spool.clone(), read(&asked)));
    };
    add(Method::GET, "/spool", |_| Ok(Ask::Status));
    add(Method::GET, "/dead-letters", |asked| {
        let which = Which { seq: None, device: text(asked, "device")?, reason: text(asked, "reason")? };
        let most =
            number(asked, "most")?.map_or(MOST, |most| usize::try_from(most).unwrap_or(MOST).min(MOST));
        Ok(Ask::List { which, after: number(asked, "after")?.unwrap_or(0), most })
    });
    add(Method::GET, "/dead-letters/letter", |asked| match number(asked, "seq")? {
        Some(seq) => Ok(Ask::Show { seq }),
        None => Err(Reply::wrong(StatusCode::BAD_REQUEST, "which one? write ?seq=NUMBER")),
    });
    add(Method::POST, "/dead-letters/replay", |asked| {
        asked.json().map(Order::which).map(|(which, after, up_to)| Ask::Replay { which, after, up_to })
    });
    add(Method::POST, "/dead-letters/drop", |asked| {
        asked.json().map(Order::which).map(|(which, after, up_to)| Ask::Drop { which, after, up_to })
    });
}

fn number(asked: &Asked, name: &str) -> Result<Option<u64>, Reply> {
    let text = asked.query(name);
    let number = text.map(str::parse).transpose();
    number.map_err(|_| Reply::wrong(StatusCode::BAD_REQUEST, &format!("{name} is not a number")))
}

fn text(asked: &Asked, name: &str) -> Result<Option<String>, Reply> {
    let wrong = || Reply::wrong(StatusCode::BAD_REQUEST, &format!("{name} is not percent-encoded text"));
    asked.query(name).map(|text| percent::decode(text).ok_or_else(wrong)).transpose()
}

async fn answer(spool: Spool, ask: Result<Ask, Reply>) -> Reply {
    let ask = match ask {
        Ok(ask) => ask,
        Err(wrong) => return wrong,
    };
    match spool.ask(ask).await {
        Some(Answer::Status(status)) => Reply::json(&status),
        Some(Answer::List(list)) => Reply::json(&list),
        Some(Answer::Show(letter)) => Reply::json(&letter),
        Some(Answer::Done(done)) => Reply::json(&done),
        None => Reply::wrong(StatusCode::SERVICE_UNAVAILABLE, "the spool has stopped"),
    }
}

/// Asks the gateway that runs.
///
/// # Errors
/// When it does not answer, or refuses.
pub(crate) async fn ask(client: &mut Client, ask: &Ask) -> Result<Answer, ClientError> {
    Ok(match ask {
        Ask::Status => Answer::Status(client.ask(Method::GET, "/spool", Vec::new()).await?),
        Ask::List { which, after, most } => {
            let mut path = format!("/dead-letters?after={after}&most={most}");
            for (name, value) in [("device", &which.device), ("reason", &which.reason)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", percent::encode(value)));
                }
            }
            Answer::List(client.ask(Method::GET, &path, Vec::new()).await?)
        }
        Ask::Show { seq } => {
            let path = format!("/dead-letters/letter?seq={seq}");
            Answer::Show(client.ask(Method::GET, &path, Vec::new()).await?)
        }
        Ask::Replay { which, after, up_to } => {
            let order = Order::of(which, *after, *up_to);
            Answer::Done(client.ask(Method::POST, "/dead-letters/replay", order).await?)
        }
        Ask::Drop { which, after, up_to } => {
            let order = Order::of(which, *after, *up_to);
            Answer::Done(client.ask(Method::POST, "/dead-letters/drop", order).await?)
        }
    })
}
