//! One message to thousands of clients, through several servers.

use std::collections::HashMap;

use lurcher::handler::{Event, IDS_PER_MESSAGE, Opcode, Options};
use lurcher::wire::reply;

use super::fake_front::{Front, json, request};
use super::{PATIENCE, end, run};

const CLIENTS: u32 = 5000;

/// Who got what in the next so many messages of a front: payloads by number of clients.
fn delivered(front: &Front, messages: usize) -> HashMap<String, Vec<u32>> {
    let mut all: HashMap<String, Vec<u32>> = HashMap::new();
    for _ in 0..messages {
        let message = front.replies.recv_timeout(PATIENCE).expect("a message");
        let reply =
            reply::decode(&message, IDS_PER_MESSAGE).expect("no more ids than servers take");
        let payload = String::from_utf8_lossy(&message[reply.payload.clone()]).into_owned();
        all.entry(payload)
            .or_default()
            .extend(reply.targets.map(|id| id.0));
    }
    all
}

#[test]
fn a_crowd_of_thousands_on_two_servers_is_reached_in_batches() {
    let fronts = [Front::new(), Front::new()];
    let specs =
        |spec: fn(&Front) -> &String| fronts.each_ref().map(|front| spec(front).parse().unwrap());
    let mut options = Options::new(specs(|front| &front.send_spec));
    options.recv_specs = specs(|front| &front.recv_spec).to_vec();
    options.subscription_timeout = PATIENCE;
    let handler = run(options, async |mut connection| {
        let mut crowd = Vec::new();
        while crowd.len() < CLIENTS as usize {
            crowd.push(connection.recv().await.unwrap().client());
        }
        connection.deliver_to(&crowd, "raw").await.unwrap();
        connection
            .deliver_to_http(&crowd, "body", 200, "", &[("Connection", "close")])
            .await
            .unwrap();
        connection.deliver_to_json(&crowd, &[1, 2]).await.unwrap();
        connection
            .deliver_to_websocket(&crowd, "hi", Opcode::Text)
            .await
            .unwrap();
        connection.deliver_to_close(&crowd).await.unwrap();
        connection.deliver_to(&[], "nobody").await.unwrap();
        connection.finish().await;
    });
    let ids = |front: usize| {
        (0..CLIENTS)
            .filter(move |id| id % 5 == 0 || front == 0)
            .filter(move |id| id % 5 != 0 || front == 1)
    };
    for id in 0..CLIENTS {
        fronts[usize::from(id % 5 == 0)].push(&request(id, "GET", "HTTP/1.1", ""));
    }
    for (at, front) in fronts.iter().enumerate() {
        let expected: Vec<u32> = ids(at).collect();
        let batches = expected.len().div_ceil(IDS_PER_MESSAGE);
        let http = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody";
        for payload in ["raw", http, "", "[1,2]", "\u{fffd}\u{2}hi", ""] {
            let got = delivered(front, batches);
            assert_eq!(got.keys().collect::<Vec<_>>(), [payload]);
            let mut got = got[payload].clone();
            got.sort_unstable();
            assert!(
                got == expected,
                "each client of the server once: {payload:?}"
            );
        }
    }
    end(handler);
}

#[test]
fn clients_of_different_idents_on_one_server_get_messages_of_their_own() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let a = connection.recv().await.unwrap().client();
        let b = connection.recv().await.unwrap().client();
        connection.deliver_to([&b, &a, &a], "x").await.unwrap();
        connection
            .deliver_json("a", &[a.conn_id()], &true)
            .await
            .unwrap();
        connection.finish().await;
    });
    for (sender, id) in [("a", 1), ("b", 2)] {
        front.push(&json(
            sender,
            id,
            "/",
            &[("METHOD", "GET"), ("VERSION", "HTTP/1.1")],
            "",
        ));
    }
    assert_eq!(front.reply(), "b 1:2, x");
    assert_eq!(front.reply(), "a 3:1 1, x");
    assert_eq!(front.reply(), "a 1:1, true");
    end(handler);
}

#[test]
fn json_is_read_where_it_comes() {
    let front = Front::new();
    let handler = run(front.options(), async |mut connection| {
        let (request, value) = connection.recv_json::<Vec<u8>>().await.unwrap();
        assert_eq!(value.unwrap(), [1, 2]);
        assert!(matches!(request.into_event(), Event::Message(_)));
        let (_, value) = connection.recv_json::<Vec<u8>>().await.unwrap();
        assert!(value.is_err());
        connection.finish().await;
    });
    let headers = [
        ("METHOD", "JSON"),
        ("PATTERN", "@a"),
        ("REMOTE_ADDR", "::1"),
    ];
    front.push(&json("front", 1, "@a", &headers, "[1,2]"));
    front.push(&json("front", 1, "@a", &headers, "{"));
    end(handler);
}
