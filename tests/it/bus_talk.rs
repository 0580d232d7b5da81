//! The sockets of the bus that workers of a broker need (ROUTER and PUB) against libzmq's DEALER, REQ, SUB and XSUB, old protocols, and
//! peers who misbehave.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use lurcher::bus::server::{Full, Kind, Options, Outgoing, Peer};

use crate::bus_peers::{
    Bus, PATIENCE, Raw, blocking, connect, everything, greeting, ipc, payload, ready, shard,
    short_frame, tcp,
};

/// Sizes at which a frame header changes, and some that need several reads.
const SIZES: [usize; 8] = [0, 1, 63, 254, 255, 256, 70_000, 3_000_000];

async fn router() -> Bus {
    Bus::bind(tcp(), Kind::Router, Options::default()).await
}

/// Messages of one frame and of many, empty ones among them.
fn all_sizes() -> Vec<Vec<Vec<u8>>> {
    let single = SIZES.iter().map(|size| vec![payload(*size)]);
    let behind = SIZES
        .iter()
        .map(|size| vec![b"REQUEST".to_vec(), Vec::new(), payload(*size)]);
    let many = vec![b"x".to_vec(); 200];
    single.chain(behind).chain([many]).collect()
}

fn borrowed(message: &[Vec<u8>]) -> Vec<&[u8]> {
    message.iter().map(Vec::as_slice).collect()
}

#[test]
fn dealers_are_talked_with_in_messages_of_every_size_over_tcp_and_ipc() {
    shard(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("router").to_str().unwrap().to_owned();
        for endpoint in [tcp(), ipc(&path)] {
            let bus = Bus::bind(endpoint, Kind::Router, Options::default()).await;
            let address = bus.address.clone();
            let dealer = std::thread::spawn(move || {
                let dealer = connect(zmq::DEALER, &address);
                for message in all_sizes() {
                    dealer.send_multipart(message, 0).unwrap();
                }
                let count = all_sizes().len();
                (0..count)
                    .map(|_| dealer.recv_multipart(0).unwrap())
                    .collect::<Vec<_>>()
            });
            let peer = bus.recorder.peer(0).await;
            assert!(bus.recorder.messages(all_sizes().len()).await == all_sizes());
            for message in all_sizes() {
                peer.send_frames(&borrowed(&message), 0).unwrap();
            }
            let got = blocking(|| dealer.join().unwrap()).await;
            assert!(got == all_sizes());
            bus.recorder.lost(&peer).await;
        }
    });
}

#[test]
fn a_message_behind_small_frames_is_its_last_frame_at_every_size() {
    shard(async {
        let bus = router().await;
        let address = bus.address.clone();
        let dealer = std::thread::spawn(move || {
            let dealer = connect(zmq::DEALER, &address);
            (0..2 * SIZES.len())
                .map(|_| dealer.recv_multipart(0).unwrap())
                .collect::<Vec<_>>()
        });
        let peer = bus.recorder.peer(0).await;
        let mut expected = Vec::new();
        for size in SIZES {
            let message = payload(size);
            let (head, body) = message.split_at(size.min(40));
            let outgoing = || Outgoing {
                head: head.into(),
                body: Bytes::copy_from_slice(body),
            };
            peer.send_behind(&[b"REQUEST", b"1", b"", &payload(300)], outgoing(), 1)
                .unwrap();
            let frames = [&b"REQUEST"[..], b"1", b"", &payload(300), &message];
            expected.push(frames.map(<[u8]>::to_vec).to_vec());
            // With nothing before it, it is a message of one frame.
            peer.send_behind(&[], outgoing(), 2).unwrap();
            expected.push(vec![message]);
        }
        let got = blocking(|| dealer.join().unwrap()).await;
        assert!(got == expected);
    });
}

#[test]
fn each_dealer_gets_what_is_for_it_and_what_it_says_is_known_for_its_own() {
    shard(async {
        let bus = router().await;
        let dealers: Vec<_> = (0..20)
            .map(|number| {
                let address = bus.address.clone();
                std::thread::spawn(move || {
                    let dealer = connect(zmq::DEALER, &address);
                    dealer.send(&format!("{number}"), 0).unwrap();
                    for count in 0..100 {
                        let frames = dealer.recv_multipart(0).unwrap();
                        let expected = [format!("{number}"), format!("{count}")];
                        assert_eq!(frames, expected.map(String::into_bytes));
                    }
                })
            })
            .collect();
        bus.recorder.messages(20).await;
        let names: Vec<(Rc<Peer>, Vec<u8>)> = {
            let seen = bus.recorder.seen.borrow();
            let peer = |id| seen.joined.iter().find(|peer| peer.id() == id).cloned();
            let named = seen.messages.iter();
            named
                .map(|(id, frames)| (peer(*id).unwrap(), frames[0].clone()))
                .collect()
        };
        for count in 0..100 {
            for (peer, name) in &names {
                peer.send_frames(&[name, format!("{count}").as_bytes()], count)
                    .unwrap();
            }
        }
        blocking(|| {
            for dealer in dealers {
                dealer.join().unwrap();
            }
        })
        .await;
    });
}

/// Fills a peer that does not read until its socket has taken nothing for a while.
async fn fill(peer: &Peer, tag: &mut u64) {
    let blocked = |peer: &Peer| {
        peer.blocked_since()
            .is_some_and(|since| since.elapsed() > Duration::from_millis(300))
    };
    while !blocked(peer) {
        if !peer.is_blocked() {
            send_numbered(peer, *tag);
            *tag += 1;
        }
        if (*tag).is_multiple_of(10) || peer.is_blocked() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn send_numbered(peer: &Peer, tag: u64) {
    let message = Bytes::from(payload(5000)).into();
    peer.send_behind(&[b"REQUEST", tag.to_string().as_bytes()], message, tag)
        .unwrap();
}

#[test]
fn what_a_blocked_dealer_has_not_got_is_taken_back_and_can_be_sent_again_as_it_was() {
    shard(async {
        let bus = router().await;
        let address = bus.address.clone();
        let (go, wait) = std::sync::mpsc::channel::<u64>();
        let dealer = std::thread::spawn(move || {
            let context = zmq::Context::new();
            let dealer = context.socket(zmq::DEALER).unwrap();
            dealer.set_rcvhwm(1).unwrap();
            dealer.set_rcvtimeo(20_000).unwrap();
            dealer.connect(&address).unwrap();
            let count = wait.recv().unwrap();
            for number in 0..count {
                let frames = dealer.recv_multipart(0).unwrap();
                assert_eq!(frames.len(), 3);
                assert_eq!(frames[1], number.to_string().into_bytes());
                assert!(frames[2] == payload(5000));
            }
        });
        let peer = bus.recorder.peer(0).await;
        let mut tag = 0;
        fill(&peer, &mut tag).await;
        // Buffers of one connection, not of a fleet.
        assert!(tag < 3000, "{tag} messages swallowed");
        for _ in 0..20 {
            send_numbered(&peer, tag);
            tag += 1;
        }
        let taken = peer.take_unsent();
        assert!(taken.len() >= 20 && peer.queued_messages() <= 1);
        assert!(taken.iter().map(|unsent| unsent.tag).is_sorted());
        assert_eq!(taken.last().map(|unsent| unsent.tag), Some(tag - 1));
        for unsent in taken {
            peer.send_again(unsent).unwrap();
        }
        go.send(tag).unwrap();
        blocking(|| dealer.join().unwrap()).await;
        let id = peer.id();
        bus.recorder
            .wait(|seen| seen.writable.contains(&id).then_some(()))
            .await;
    });
}

#[test]
fn a_lost_dealer_tells_what_was_not_written_to_it() {
    shard(async {
        let bus = router().await;
        let raw = Raw::ready(&bus.address, "DEALER").await;
        let peer = bus.recorder.peer(0).await;
        let mut tag = 0;
        fill(&peer, &mut tag).await;
        for _ in 0..20 {
            send_numbered(&peer, tag);
            tag += 1;
        }
        let queued = peer.queued_messages() as u64;
        assert!(queued >= 20);
        drop(raw);
        let lost = bus.recorder.lost(&peer).await;
        assert_eq!(lost, (tag - queued..tag).collect::<Vec<_>>());
        assert_eq!(peer.send_frames(&[b"late"], 0), Err(Full::Gone));
    });
}

#[test]
fn what_a_dealer_said_before_it_died_is_heard_although_writing_to_it_fails() {
    shard(async {
        let bus = router().await;
        let mut raw = Raw::ready(&bus.address, "DEALER").await;
        let peer = bus.recorder.peer(0).await;
        let said = [&b"\x01\x05REPLY"[..], &short_frame(b"last words")].concat();
        raw.write(&said.repeat(500)).await;
        drop(raw);
        // It is gone for whoever writes; what it wrote is there.
        while peer.send_frames(&[b"REQUEST"], 1).is_ok() {
            tokio::task::yield_now().await;
        }
        bus.recorder.lost(&peer).await;
        assert_eq!(bus.recorder.seen.borrow().messages.len(), 500);
    });
}

#[test]
fn a_req_and_old_protocols_are_peers_too() {
    shard(async {
        let bus = router().await;
        let address = bus.address.clone();
        let req = std::thread::spawn(move || {
            let req = connect(zmq::REQ, &address);
            req.send("question", 0).unwrap();
            req.recv_bytes(0).unwrap()
        });
        let peer = bus.recorder.peer(0).await;
        assert_eq!(
            bus.recorder.messages(1).await[0],
            [&b""[..], b"question"].map(<[u8]>::to_vec)
        );
        peer.send_frames(&[b"", b"answer"], 0).unwrap();
        assert_eq!(blocking(|| req.join().unwrap()).await, b"answer");

        // ZMTP 1.0: an empty identity, and a message of two frames.
        let mut oldest = Raw::connect(&bus.address).await;
        oldest.write(b"\x01\0\x01\x01\x06\0hello").await;
        let peer = bus.recorder.peer(1).await;
        bus.recorder.messages(2).await;
        peer.send_frames(&[b"", b"hi"], 0).unwrap();
        assert_eq!(oldest.read(15).await[10..], *b"\x01\x01\x03\0h");
        assert_eq!(oldest.read(1).await, b"i");

        // ZMTP 2.0: its type, DEALER is 5.
        let mut old = Raw::connect(&bus.address).await;
        let signature = b"\xff\0\0\0\0\0\0\0\x01\x7f";
        old.write(&[&signature[..], b"\x01\x05\0\0\x01\0\0\x05hello"].concat())
            .await;
        let peer = bus.recorder.peer(2).await;
        assert_eq!(bus.recorder.messages(3).await[2], [&b""[..], b"hello"]);
        peer.send_behind(&[b""], Bytes::from_static(b"hi").into(), 0)
            .unwrap();
        assert_eq!(old.read(14).await[11..], *b"\x06\0\0");
        assert_eq!(old.read(6).await, b"\x01\0\0\x02hi");

        // Sockets of other types never join.
        for kind in ["PULL", "SUB", "PAIR"] {
            let mut wrong = Raw::connect(&bus.address).await;
            wrong.write(&greeting()).await;
            wrong.write(&ready(kind)).await;
            wrong.rest().await;
        }
        assert_eq!(bus.recorder.seen.borrow().joined.len(), 3);
    });
}

#[test]
fn too_many_frames_and_too_many_bytes_end_their_own_connection() {
    shard(async {
        let mut options = Options::default();
        options.protocol.message_bytes_max = 1000;
        options.protocol.message_frames_max = 8;
        let bus = Bus::bind(tcp(), Kind::Router, options).await;
        let good = connect(zmq::DEALER, &bus.address);
        let peer = bus.recorder.peer(0).await;
        let mut raw = Raw::ready(&bus.address, "DEALER").await;
        raw.write(&b"\x01\0".repeat(9)).await;
        assert_eq!(raw.rest().await, b"");
        let mut raw = Raw::ready(&bus.address, "DEALER").await;
        raw.write(b"\x01\x01x\x02\0\0\0\0\0\0\x03\xe8").await;
        assert_eq!(raw.rest().await, b"");
        blocking(move || good.send_multipart(["still", "here"], 0).unwrap()).await;
        assert_eq!(bus.recorder.messages(1).await.len(), 1);
        bus.recorder.lost(&peer).await;
    });
}

#[test]
fn subscribers_get_what_they_have_asked_for() {
    shard(async {
        let bus = Bus::bind(tcp(), Kind::Pub, Options::default()).await;
        let address = bus.address.clone();
        let subscribed = |count: usize| {
            bus.recorder
                .wait(move |seen| (seen.subscribed.len() == count).then_some(()))
        };
        let all = connect(zmq::SUB, &address);
        all.set_subscribe(b"").unwrap();
        subscribed(1).await;
        let some = connect(zmq::SUB, &address);
        for topic in ["a", "b"] {
            some.set_subscribe(topic.as_bytes()).unwrap();
        }
        subscribed(3).await;
        // XSUB says it by messages.
        let by_message = connect(zmq::XSUB, &address);
        by_message.send(&b"\x01b"[..], 0).unwrap();
        subscribed(4).await;
        for message in ["", "a1", "b1", "c1"] {
            bus.listening.publish(message.as_bytes());
        }
        // A SUB sorts out itself too what it has not been given yet: everything is heard before it changes its mind.
        let sockets = blocking(move || {
            heard(&all, &["", "a1", "b1", "c1"]);
            heard(&some, &["a1", "b1"]);
            heard(&by_message, &["b1"]);
            some.set_unsubscribe(b"a").unwrap();
            // That is told to nobody: it is in effect when the next subscription is.
            some.set_subscribe(b"d").unwrap();
            [all, some, by_message]
        })
        .await;
        subscribed(5).await;
        let some = bus.recorder.seen.borrow().subscribed[4];
        for message in ["a2", "b2", "d2"] {
            let peers = bus.recorder.seen.borrow().joined.clone();
            let peer = peers.into_iter().find(|peer| peer.id() == some).unwrap();
            assert_eq!(peer.is_subscribed_to(message.as_bytes()), message != "a2");
            bus.listening.publish(message.as_bytes());
        }
        blocking(move || {
            let [all, some, by_message] = sockets;
            heard(&all, &["a2", "b2", "d2"]);
            heard(&some, &["b2", "d2"]);
            heard(&by_message, &["b2"]);
        })
        .await;
    });
}

fn heard(socket: &zmq::Socket, expected: &[&str]) {
    for message in expected {
        assert_eq!(socket.recv_bytes(0).unwrap(), message.as_bytes());
    }
}

#[test]
fn old_subscribers_are_understood_and_the_oldest_get_everything() {
    shard(async {
        let bus = Bus::bind(tcp(), Kind::Pub, Options::default()).await;
        let signature = b"\xff\0\0\0\0\0\0\0\x01\x7f";
        // ZMTP 1.0 SUBs choose themselves and say nothing.
        let mut oldest = Raw::connect(&bus.address).await;
        oldest.write(b"\x01\0").await;
        bus.recorder.peer(0).await;
        // ZMTP 2.0, SUB is 2: a subscription is a message.
        let mut old = Raw::connect(&bus.address).await;
        old.write(&[&signature[..], b"\x01\x02\0\0\0\x03\x01ab\0\x02xx"].concat())
            .await;
        bus.recorder
            .wait(|seen| (seen.subscribed.len() == 1).then_some(()))
            .await;
        bus.listening.publish(b"abc");
        bus.listening.publish(b"xyz");
        assert_eq!(oldest.read(20).await[10..], *b"\x04\0abc\x04\0xyz");
        assert_eq!(old.read(19).await[14..], *b"\0\x03abc");
    });
}

#[test]
fn a_subscriber_that_does_not_read_loses_messages_and_others_none() {
    shard(async {
        let options = Options {
            queue_messages_max: 10,
            ..Options::default()
        };
        let bus = Bus::bind(tcp(), Kind::Pub, options).await;
        let mut stuck = Raw::ready(&bus.address, "SUB").await;
        // SUBSCRIBE, to everything, as a command.
        stuck.write(b"\x04\x0a\x09SUBSCRIBE").await;
        let slow = bus.recorder.peer(0).await;
        bus.recorder
            .wait(|seen| (seen.subscribed.len() == 1).then_some(()))
            .await;
        let message = payload(1_000_000);
        let blocked = async {
            while slow
                .blocked_since()
                .is_none_or(|since| since.elapsed() <= Duration::from_millis(300))
            {
                bus.listening.publish(&message);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, blocked).await.unwrap();
        for _ in 0..20 {
            bus.listening.publish(&message);
        }
        assert_eq!(slow.queued_messages(), 10);
        let other = connect(zmq::SUB, &bus.address);
        other.set_subscribe(b"").unwrap();
        bus.recorder
            .wait(|seen| (seen.subscribed.len() == 2).then_some(()))
            .await;
        bus.listening.publish(b"news");
        blocking(move || assert_eq!(other.recv_bytes(0).unwrap(), b"news")).await;
    });
}

#[test]
fn subscriptions_without_end_are_the_end_of_their_connection() {
    shard(async {
        let mut options = Options::default();
        options.protocol.unasked_bytes_max = 10_000;
        let bus = Bus::bind(tcp(), Kind::Pub, options).await;
        let mut many = Raw::ready(&bus.address, "SUB").await;
        many.write(&b"\0\x02\x01a".repeat(1000)).await;
        assert_eq!(many.rest().await, b"");
        // Nor is there room for what is no subscription.
        let mut chatty = Raw::ready(&bus.address, "SUB").await;
        chatty.write(&b"\0\x02xx".repeat(5000)).await;
        assert_eq!(chatty.rest().await, b"");
        // Whoever takes back what it wants can go on for ever.
        let mut fickle = Raw::ready(&bus.address, "SUB").await;
        fickle.write(&b"\0\x02\x01a\0\x02\0a".repeat(20_000)).await;
        fickle.write(b"\0\x02\x01z").await;
        let last = bus.recorder.peer(2).await;
        while !last.is_subscribed_to(b"z") {
            assert!(!last.is_gone());
            tokio::task::yield_now().await;
        }
        assert!(!last.is_subscribed_to(b"a"));
    });
}

#[test]
fn random_frames_harm_nobody_else() {
    shard(async {
        let bus = router().await;
        let steady = connect(zmq::DEALER, &bus.address);
        let peer = bus.recorder.peer(0).await;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..50 {
            let mut raw = Raw::ready(&bus.address, "DEALER").await;
            let mut noise = Vec::new();
            for _ in 0..random() % 200 {
                noise.extend_from_slice(&random().to_le_bytes());
            }
            // It may be closed while it still writes.
            drop(tokio::io::AsyncWriteExt::write_all(&mut raw.stream, &noise).await);
        }
        peer.send_frames(&[b"", b"still here?"], 0).unwrap();
        blocking(move || {
            let frames = steady.recv_multipart(0).unwrap();
            assert_eq!(frames[1], b"still here?");
            steady.send("yes", 0).unwrap();
        })
        .await;
        let id = peer.id();
        bus.recorder
            .wait(|seen| {
                let mut own = seen.messages.iter().filter(|(from, _)| *from == id);
                own.any(|(_, frames)| frames == &[b"yes".to_vec()])
                    .then_some(())
            })
            .await;
    });
}

#[test]
fn a_router_and_a_sub_do_not_hear_what_is_not_for_them() {
    shard(async {
        // A PUB that connects to a ROUTER, and a DEALER that connects to a SUB, are refused in the handshake.
        let (router, sub) = (
            router().await,
            Bus::bind(tcp(), everything(), Options::default()).await,
        );
        for (address, kind) in [(&router.address, "PUB"), (&sub.address, "DEALER")] {
            let mut wrong = Raw::connect(address).await;
            wrong.write(&greeting()).await;
            wrong.write(&ready(kind)).await;
            wrong.rest().await;
        }
        assert!(router.recorder.seen.borrow().joined.is_empty());
        assert!(sub.recorder.seen.borrow().joined.is_empty());
    });
}
