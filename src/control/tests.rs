//! A real socket in a real directory.

use hyper::Method;
use serde_json::{Value, json};

use super::*;
use crate::state::tests::Scratch;

fn state(scratch: &Scratch) -> StateDir {
    StateDir::locate(Some(&scratch.0.join("state"))).unwrap()
}

fn router() -> Router {
    let mut router = Router::default();
    router.add(Method::GET, "/pumps", |asked| async move { Reply::json(&asked.query("site")) });
    router.add(Method::POST, "/pumps", |asked| async move {
        match asked.json::<Value>() {
            Ok(value) => Reply::json(&value),
            Err(wrong) => wrong,
        }
    });
    router
}

/// Runs the client's part while the socket is served.
fn with_client<T>(ask: impl AsyncFnOnce(&mut Client) -> T) -> T {
    let scratch = Scratch::new();
    let state = state(&scratch);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let bound = bind(&state).unwrap();
        tokio::select! {
            () = serve(bound, router()) => unreachable!("it serves until it is dropped"),
            result = async {
                let mut client = Client::connect(&state).await.unwrap().unwrap();
                ask(&mut client).await
            } => result,
        }
    })
}

#[test]
fn a_question_finds_its_answer() {
    with_client(async |client| {
        let got: Value = client.ask(Method::GET, "/pumps?a=b&site=ber", Vec::new()).await.unwrap();
        assert_eq!(got, json!("ber"));
        let got: Value = client.ask(Method::POST, "/pumps", b"{\"x\":1}".to_vec()).await.unwrap();
        assert_eq!(got, json!({ "x": 1 }));
    });
}

#[test]
fn what_is_not_known_is_refused_in_words() {
    with_client(async |client| {
        for (method, path, body, why) in [
            (Method::GET, "/wells", "", "nothing is at /wells"),
            (Method::DELETE, "/pumps", "", "/pumps is not for DELETE"),
            (Method::POST, "/pumps", "{", "the body is not as it should be"),
        ] {
            let error = client.ask::<Value>(method, path, body.into()).await.unwrap_err().to_string();
            assert!(error.starts_with("the running gateway says: ") && error.contains(why), "{error}");
        }
        let long = vec![b' '; MAX_BODY_BYTES + 1];
        let error = client.ask::<Value>(Method::POST, "/pumps", long).await.unwrap_err().to_string();
        assert!(error.contains("the body cannot be read"), "{error}");
    });
}

#[test]
fn the_socket_is_its_users_own_and_a_dead_gateways_is_taken_over() {
    let scratch = Scratch::new();
    let state = state(&scratch);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(Client::connect(&state)).unwrap().is_none());
    let bound = bind(&state).unwrap();
    let path = socket(&state);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(state.path()).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(matches!(bind(&state), Err(ControlError::InUse(_))));
    drop(bound);
    assert!(!is_there(&path));
    // As a kill leaves it: the file, and nobody behind it.
    drop(net::UnixListener::bind(&path).unwrap());
    assert!(is_there(&path));
    assert!(runtime.block_on(Client::connect(&state)).unwrap().is_none());
    bind(&state).unwrap();
}
