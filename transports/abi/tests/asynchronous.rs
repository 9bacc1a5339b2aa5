//! Connections as futures, over the loopback transport.

mod loopback;

use std::time::Duration;

use genie_transport::asynchronous::{AsyncConnection, AsyncListener};
use genie_transport::transport::*;
use loopback::{Fault, Loopback};

async fn pair() -> (AsyncConnection, AsyncConnection) {
    let options = Options { address: "@".into(), ..Options::default() };
    let listener = Loopback(Fault::None).listen(&options).unwrap();
    let mut listener = AsyncListener::new(listener).unwrap();
    let options = Options { address: listener.address(), ..options };
    let accept = tokio::spawn(async move { listener.accept().await.unwrap() });
    let a = AsyncConnection::new(Loopback(Fault::None).connect(&options).unwrap()).unwrap();
    let (mut a, mut b) = (a, accept.await.unwrap());
    assert!(matches!(a.next().await, Ok(Completion::Connected)));
    assert!(matches!(b.next().await, Ok(Completion::Connected)));
    (a, b)
}

/// Runs a test on a runtime of one thread, within a bound.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("it hangs");
    });
}

#[test]
fn frames_wait_for_room() {
    run(async {
        let (mut a, mut b) = pair().await;
        // Far more than the queue holds: the sender must wait for the reader.
        let frames = 4 * FRAME_QUEUE_BYTES_MAX / (1 << 20);
        let sender = tokio::spawn(async move {
            for number in 0..frames {
                a.send_frame(number as u8, &[&vec![number as u8; 1 << 20]], None).await.unwrap();
            }
            a.close("done").await.unwrap();
        });
        for number in 0..frames {
            match b.next().await.unwrap() {
                Completion::Frame { kind, body, .. } => {
                    assert_eq!((kind, body.len()), (number as u8, 1 << 20));
                    assert!(body.iter().all(|byte| *byte == number as u8));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(b.next().await.unwrap_err().cause, Cause::Closed);
        assert_eq!(b.next().await.unwrap_err().cause, Cause::Closed, "the end stays the end");
        sender.await.unwrap();
    });
}

#[test]
fn writes_wait_for_credit_and_windows() {
    run(async {
        let (mut a, mut b) = pair().await;
        let (memory, _) = Memory::allocate(4_096).unwrap();
        let key = a.register(memory).unwrap();
        let part = Part { key, offset: 0, bytes: 64 };
        let messages = 3 * MESSAGES_MAX as u64;
        let receiver = tokio::spawn(async move {
            let (memory, _) = Memory::allocate(4_096).unwrap();
            let key = b.register(memory).unwrap();
            b.offer(1, Part { key, offset: 0, bytes: 4_096 }).unwrap();
            for message in 1..=messages + 1 {
                match b.next().await.unwrap() {
                    Completion::Placed { message: placed, .. } => assert_eq!(placed, message),
                    other => panic!("{other:?}"),
                }
            }
            // Driven until the end: what it has to say may wait for room.
            assert_eq!(b.next().await.unwrap_err().cause, Cause::Closed);
        });
        for message in 1..=messages {
            match a.write(message, &[part], 1, 0).await {
                Ok(()) => {}
                Err(error) => panic!("message {message}: {error}"),
            }
            while let Some(done) = a.try_next().unwrap() {
                assert!(matches!(done, Completion::Written { .. }));
            }
        }
        let last = messages + 1;
        a.write(last, &[part], 1, 0).await.unwrap();
        a.written(last).await.unwrap();
        a.close("done").await.unwrap();
        receiver.await.unwrap();
        assert_eq!(a.next().await.unwrap_err().cause, Cause::Closed);
    });
}

#[test]
fn a_dropped_future_loses_nothing() {
    run(async {
        let (mut a, mut b) = pair().await;
        for _ in 0..20 {
            let waiting = tokio::time::timeout(Duration::from_millis(1), b.next()).await;
            assert!(waiting.is_err());
        }
        a.send_frame(9, &[b"here"], None).await.unwrap();
        assert!(matches!(b.next().await, Ok(Completion::Frame { kind: 9, .. })));
    });
}

#[test]
fn many_round_trips_never_hang() {
    run(async {
        let (mut a, mut b) = pair().await;
        let echo = tokio::spawn(async move {
            while let Ok(Completion::Frame { kind, body, .. }) = b.next().await {
                b.send_frame(kind, &[&body], None).await.unwrap();
            }
        });
        for number in 0..5_000u32 {
            a.send_frame(1, &[&number.to_le_bytes()], None).await.unwrap();
            match a.next().await.unwrap() {
                Completion::Frame { body, .. } => assert_eq!(body, number.to_le_bytes()),
                other => panic!("{other:?}"),
            }
        }
        drop(a);
        echo.await.unwrap();
    });
}
