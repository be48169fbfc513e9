//! `$cbs`: requests to put a token, and their answers.

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::endpoint::{BadCbsRequest, CbsRequest, SAS_TOKEN, put_cbs_response};

use super::auth::{Authority, Denied, Grant, Grants, TooManyTokens};

/// Why a token was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// The request is not one that is answered here.
    #[error(transparent)]
    Request(#[from] BadCbsRequest),
    /// The token is not good.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The connection has enough of them.
    #[error(transparent)]
    TooMany(#[from] TooManyTokens),
}

impl Refused {
    /// The status code of the answer.
    pub(crate) fn status(&self) -> i32 {
        match self {
            Self::Request(_) => 400,
            Self::Denied(denied) => denied.status(),
            Self::TooMany(_) => 403,
        }
    }
}

/// Carries out a request: puts the token among `grants`, or does not. Returns the answer to send, and what became
/// of it.
pub(crate) fn handle(
    authority: &Authority,
    grants: &mut Grants,
    now_unix: u64,
    request: &Bytes,
) -> (Bytes, Result<Grant, Refused>) {
    let request = CbsRequest::parse(request);
    let result = match &request {
        Ok(request) => put_token(authority, grants, now_unix, request),
        Err(_) => Err(BadCbsRequest("the request is no AMQP message").into()),
    };
    let (status, description) = match &result {
        Ok(_) => (200, "OK".to_owned()),
        Err(refused) => (refused.status(), refused.to_string()),
    };
    let id = request.as_ref().ok().and_then(CbsRequest::id);
    let mut out = BytesMut::new();
    put_cbs_response(&mut out, id, status, &description);
    (out.freeze(), result)
}

fn put_token(
    authority: &Authority,
    grants: &mut Grants,
    now_unix: u64,
    request: &CbsRequest,
) -> Result<Grant, Refused> {
    let put = request.put_token()?;
    if put.token_type != SAS_TOKEN {
        let only = "the only type of token here is servicebus.windows.net:sastoken";
        return Err(BadCbsRequest(only).into());
    }
    let grant = authority.judge(put.token, put.name, now_unix)?;
    grants.put(grant.clone())?;
    Ok(grant)
}

#[cfg(test)]
mod tests {
    use fieldgate_amqp::codec::{Limits, Value};
    use fieldgate_amqp::message::{
        PropertiesOut, Sections, put_amqp_value, put_application_properties, put_data, put_properties,
    };

    use super::*;
    use crate::hub::address::Node;
    use crate::sas::{SharedKey, Signer};

    const NOW: u64 = 1_800_000_000;

    fn owner() -> SharedKey {
        SharedKey::from_bytes(b"owner").unwrap()
    }

    fn token(resource: &str) -> String {
        Signer::new(Some("iothubowner".into()), owner()).token(resource, NOW + 60)
    }

    fn request(properties: &[(&str, &str)], body: Option<&str>) -> Bytes {
        let mut out = BytesMut::new();
        put_properties(
            &mut out,
            &PropertiesOut { message_id: Some(Value::Ulong(4)), ..PropertiesOut::default() },
        );
        put_application_properties(
            &mut out,
            properties.iter().map(|(name, value)| (*name, Value::Str(value))),
        );
        match body {
            Some(body) => put_amqp_value(&mut out, &Value::Str(body)),
            None => put_data(&mut out, b"token"),
        }
        out.freeze()
    }

    fn put(grants: &mut Grants, request: &Bytes) -> (Option<Value<'static>>, i32, Result<Grant, Refused>) {
        let authority = Authority::new(&["localhost".into()], owner());
        let (answer, result) = handle(&authority, grants, NOW, request);
        let sections = Sections::parse(&answer, &Limits::WIRE).unwrap();
        let status = sections.application_properties().find_map(|(name, value)| match (name, value) {
            (Value::Str("status-code"), Value::Int(status)) => Some(status),
            _ => None,
        });
        let id = match sections.properties().correlation_id() {
            Some(Value::Ulong(id)) => Some(Value::Ulong(id)),
            _ => None,
        };
        (id, status.unwrap(), result)
    }

    const FORM: [(&str, &str); 3] = [("operation", "put-token"), ("type", SAS_TOKEN), ("name", "localhost")];

    #[test]
    fn a_good_token_grants_and_is_answered_with_200() {
        let mut grants = Grants::new(1);
        let (id, status, result) = put(&mut grants, &request(&FORM, Some(&token("localhost"))));
        assert_eq!((id, status), (Some(Value::Ulong(4)), 200));
        assert_eq!(result.unwrap().expiry, NOW + 60);
        assert!(grants.find(&Node::parse("/messages/devicebound").unwrap(), NOW).is_some());
        let (_, status, result) = put(&mut grants, &request(&FORM, Some(&token("localhost/devices/d"))));
        assert_eq!((status, result), (403, Err(Refused::TooMany(TooManyTokens))));
    }

    #[test]
    fn everything_else_is_answered_and_grants_nothing() {
        let good = token("localhost");
        let without = |name: &str| FORM.into_iter().filter(|(key, _)| *key != name).collect::<Vec<_>>();
        let with = |name: &'static str, value: &'static str| {
            without(name).into_iter().chain([(name, value)]).collect::<Vec<_>>()
        };
        let mut grants = Grants::new(9);
        for (request, status) in [
            (request(&without("operation"), Some(&good)), 400),
            (request(&with("operation", "delete-token"), Some(&good)), 400),
            (request(&without("type"), Some(&good)), 400),
            (request(&with("type", "jwt"), Some(&good)), 400),
            (request(&without("name"), Some(&good)), 400),
            (request(&FORM, Some("no token")), 400),
            (request(&FORM, None), 400),
            (request(&FORM, Some(&token("elsewhere"))), 401),
            (request(&FORM, Some(&good.replace("iothubowner", "service"))), 401),
        ] {
            let (id, got, result) = put(&mut grants, &request);
            assert_eq!((id, got), (Some(Value::Ulong(4)), status), "{result:?}");
            assert!(result.is_err());
        }
        let (id, status, _) = put(&mut grants, &Bytes::from_static(b"\xff\xff"));
        assert_eq!((id, status), (None, 400));
        assert_eq!(grants.next_expiry(), None);
    }
}
