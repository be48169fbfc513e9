//! A consumer for the benchmarks: it receives from one address over plain AMQP 1.0 with SASL PLAIN, and accepts each message.
//!
//! `consumer --port PORT --address ADDRESS --user USER --password PASSWORD` prints `READY` when it is attached, and
//! `RECEIVED n` whenever it has n messages and none more is there for the moment.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use fe2o3_amqp::connection::Connection;
use fe2o3_amqp::link::Receiver;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::Session;
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::Value;

/// Nothing came for so long: it says what it has.
const MOMENT: Duration = Duration::from_millis(20);
const CREDIT: u32 = 1000;

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

async fn consume(options: &HashMap<String, String>) -> Result<(), Box<dyn Error>> {
    let option = |name: &str| options.get(name).map(String::as_str).ok_or(format!("--{name} is missing"));
    let profile =
        SaslProfile::Plain { username: option("user")?.into(), password: option("password")?.into() };
    let url = format!("amqp://127.0.0.1:{}", option("port")?);
    let mut connection =
        Connection::builder().container_id("consumer").sasl_profile(profile).open(url.as_str()).await?;
    let mut session = Session::begin(&mut connection).await?;
    let mut receiver = Receiver::builder()
        .name("consumer")
        .source(option("address")?)
        .credit_mode(CreditMode::Auto(CREDIT))
        .attach(&mut session)
        .await?;
    say("READY")?;
    let (mut received, mut said) = (0_u64, 0);
    loop {
        let delivery = match tokio::time::timeout(MOMENT, receiver.recv::<Body<Value>>()).await {
            Ok(delivery) => delivery?,
            Err(_) => {
                if received != said {
                    said = received;
                    say(&format!("RECEIVED {received}"))?;
                }
                continue;
            }
        };
        receiver.accept(&delivery).await?;
        received += 1;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut options = HashMap::new();
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        options.insert(name.trim_start_matches("--").to_owned(), value);
    }
    match consume(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to do if standard error is closed.
            let _ = writeln!(io::stderr().lock(), "consumer: {error}");
            ExitCode::FAILURE
        }
    }
}
