//! Both sides against each other, and against bytes.

use fieldgate_websocket::{PATH, SUBPROTOCOL};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

const LONG: Duration = Duration::from_secs(10);

/// Both ends of a WebSocket over a pipe that takes so many bytes at a time.
async fn pair(bytes: usize) -> (WebSocket<DuplexStream>, WebSocket<DuplexStream>) {
    let (client, server) = duplex(bytes);
    let (client, server) = tokio::join!(
        WebSocket::connect(client, "hub.example", PATH, SUBPROTOCOL),
        WebSocket::accept(server, &server::AMQP, LONG)
    );
    (client.unwrap(), server.unwrap())
}

/// A server, and the raw stream of a client that has come in.
async fn raw() -> (DuplexStream, WebSocket<DuplexStream>) {
    let (mut client, server) = duplex(64 * 1024);
    let (_, request) = Request::new("hub.example", PATH, SUBPROTOCOL, [7; 16]);
    client.write_all(request.as_bytes()).await.unwrap();
    let server = WebSocket::accept(server, &server::AMQP, LONG).await.unwrap();
    let mut answer = Vec::new();
    while end_of_head(&answer).is_none() {
        client.read_buf(&mut answer).await.unwrap();
    }
    (client, server)
}

#[tokio::test]
async fn bytes_pass_both_ways_whatever_the_pipe_takes() {
    for bytes in [1_000, 17_000, 1 << 20] {
        let (mut client, mut server) = pair(bytes).await;
        let sent: Vec<u8> = (0..200_000_u32).map(|n| (n * 7 / 3) as u8).collect();
        let there = async {
            client.write_all(&sent).await.unwrap();
            client.flush().await.unwrap();
            let mut heard = vec![0; sent.len()];
            client.read_exact(&mut heard).await.unwrap();
            assert!(heard == sent);
            client.shutdown().await.unwrap();
            assert_eq!(client.read(&mut heard).await.unwrap(), 0);
        };
        let back = async {
            let mut heard = vec![0; sent.len()];
            server.read_exact(&mut heard).await.unwrap();
            server.write_all(&heard).await.unwrap();
            server.flush().await.unwrap();
            // The goodbye is the end, and is answered.
            assert_eq!(server.read(&mut heard).await.unwrap(), 0);
            server.shutdown().await.unwrap();
        };
        tokio::join!(there, back);
        assert_eq!((client.decoder.close_code(), server.decoder.close_code()), (Some(1000), Some(1000)));
        assert!(server.write_all(b"late").await.is_err());
    }
}

#[tokio::test]
async fn an_idle_connection_holds_nothing() {
    let (mut client, mut server) = pair(1 << 20).await;
    let mut heard = vec![0; 100_000];
    client.write_all(&heard.clone()).await.unwrap();
    client.flush().await.unwrap();
    server.read_exact(&mut heard).await.unwrap();
    for side in [&client, &server] {
        assert_eq!(side.early.capacity(), 0);
        assert!(!side.encoder.has_control());
    }
    let own = size_of::<WebSocket<()>>();
    assert!(own <= 256, "{own} bytes besides the stream's own");
}

#[tokio::test]
async fn a_ping_is_answered_and_does_not_end_a_read() {
    let (mut client, mut server) = raw().await;
    // Masked with zeros: as they are.
    client.write_all(b"\x89\x82\0\0\0\0hi\x82\x83\0\0\0\0abc").await.unwrap();
    let mut heard = [0; 3];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"abc");
    // Nothing more comes; what waits is said.
    let nothing = tokio::time::timeout(Duration::from_millis(1), server.read(&mut heard)).await;
    assert!(nothing.is_err());
    let mut pong = [0; 4];
    client.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\x8a\x02hi");
}

#[tokio::test]
async fn a_violation_is_told_and_ends_it() {
    for (bytes, code) in
        [(&b"\x81\x83\0\0\0\0abc"[..], 1003_u16), (b"\x82\x03abc", 1002), (b"GET / HTTP/1.1", 1002)]
    {
        let (mut client, mut server) = raw().await;
        client.write_all(bytes).await.unwrap();
        let error = server.read(&mut [0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut close = [0; 4];
        client.read_exact(&mut close).await.unwrap();
        assert_eq!(close, [0x88, 2, (code >> 8) as u8, code as u8]);
    }
}

#[tokio::test]
async fn what_a_server_says_right_behind_its_answer_is_heard() {
    let (client, mut server) = duplex(1 << 16);
    let connecting = WebSocket::connect(client, "hub.example", PATH, SUBPROTOCOL);
    let answering = async {
        let mut head = Vec::new();
        while end_of_head(&head).is_none() {
            server.read_buf(&mut head).await.unwrap();
        }
        let mut answer = server::judge(&head, &server::AMQP).unwrap().into_bytes();
        answer.extend(b"\x82\x05early\x89\x00\x82\x04 one");
        server.write_all(&answer).await.unwrap();
        server
    };
    let (client, _server) = tokio::join!(connecting, answering);
    let (mut client, mut heard) = (client.unwrap(), [0; 9]);
    client.read_exact(&mut heard[..3]).await.unwrap();
    client.read_exact(&mut heard[3..]).await.unwrap();
    assert_eq!(&heard, b"early one");
}

/// What a client hears that writes this and closes its side, or waits.
async fn answered(bytes: &[u8], closes: bool, within: Duration) -> (String, AcceptError) {
    let (mut client, server) = duplex(4096);
    let asking = async {
        // A server that has heard enough need not take the rest.
        let _ = client.write_all(bytes).await;
        if closes {
            let _ = client.shutdown().await;
        }
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    let (answer, accepted) = tokio::join!(asking, WebSocket::accept(server, &server::AMQP, within));
    (answer, accepted.unwrap_err())
}

#[tokio::test]
async fn who_asks_wrongly_is_told_so_in_http() {
    let endless = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'x'; 20_000]].concat();
    for (bytes, status) in [
        (&b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"[..], "404 "),
        (b"POST /$iothub/websocket HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", "405 "),
        (b"GET /$iothub/websocket HTTP/1.1\r\nHost: h\r\n\r\n", "426 "),
        (b"HELO there\r\n\r\n", "400 "),
        (&endless, "431 "),
    ] {
        let (answer, error) = answered(bytes, false, LONG).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
        assert!(matches!(error, AcceptError::Refused(_)), "{error}");
    }
    let (answer, error) = answered(b"GET /$iothub", false, Duration::from_millis(50)).await;
    assert!(
        answer.starts_with("HTTP/1.1 408 ") && error.to_string().contains("too long"),
        "{answer} {error}"
    );
    let (answer, error) = answered(b"GET /$iothub", true, LONG).await;
    assert!(answer.is_empty() && matches!(error, AcceptError::Stream(_)), "{error}");
}
