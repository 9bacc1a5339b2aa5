//! A transport against plain tokio TCP over loopback, in turns: 64-byte round trips, and goodput of
//! messages of 1 MiB. Prints medians and ratios.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use genie_transport::transport::{
    Completion, Connection, Memory, Options, Part, Transport, TransportError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TURNS: usize = 7;
const ROUND_TRIPS: usize = 4_000;
const MESSAGE_BYTES: usize = 1 << 20;
const MESSAGES: u64 = 768;
const IN_FLIGHT: u64 = 8;

type Pair = (Box<dyn Connection>, Box<dyn Connection>);

fn pair(transport: &dyn Transport, listen: &Options, connect: &Options) -> Pair {
    let mut listener = transport.listen(listen).unwrap();
    let connect = Options { address: listener.address(), ..connect.clone() };
    let mut ours = transport.connect(&connect).unwrap();
    let mut theirs = None;
    let mut completions = Vec::new();
    while completions.is_empty() || theirs.is_none() {
        ours.poll(&mut completions).unwrap();
        theirs = theirs.or(listener.accept().unwrap());
        std::thread::yield_now();
    }
    (ours, theirs.unwrap())
}

/// Polls, sleeping on the descriptor, until `done`; returns early when the peer closes.
fn drive(
    connection: &mut dyn Connection,
    mut done: impl FnMut(&mut dyn Connection, Vec<Completion>) -> bool,
) -> Result<(), TransportError> {
    loop {
        let mut completions = Vec::new();
        connection.poll(&mut completions)?;
        if done(connection, completions) {
            return Ok(());
        }
        if !connection.arm()? {
            let fd = connection.event_fd();
            let mut fds =
                [rustix::event::PollFd::from_borrowed_fd(fd.as_fd(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
        }
    }
}

fn frames((mut ours, mut theirs): Pair) -> Duration {
    let echo = std::thread::spawn(move || {
        // Ends with the peer's goodbye.
        let _ = drive(theirs.as_mut(), |connection, completions| {
            for completion in completions {
                if let Completion::Frame { kind, body, .. } = completion {
                    connection.send_frame(kind, &[&body], None).unwrap();
                }
            }
            false
        });
    });
    let (mut left, begin) = (ROUND_TRIPS, Instant::now());
    ours.send_frame(1, &[&[7; 64]], None).unwrap();
    drive(ours.as_mut(), |connection, completions| {
        for completion in completions {
            if let Completion::Frame { body, .. } = completion {
                left -= 1;
                if left > 0 {
                    connection.send_frame(1, &[&body], None).unwrap();
                }
            }
        }
        left == 0
    })
    .unwrap();
    let took = begin.elapsed();
    drop(ours);
    echo.join().unwrap();
    took / ROUND_TRIPS as u32
}

fn messages((mut ours, mut theirs): Pair) -> Duration {
    let memory = || Memory::allocate(MESSAGE_BYTES as u64 * IN_FLIGHT).unwrap().0;
    let (source, target) = (memory(), memory());
    let bytes = target.bytes();
    let key = theirs.register(target).unwrap();
    theirs.offer(1, Part { key, offset: 0, bytes }).unwrap();
    let taker = std::thread::spawn(move || {
        let mut left = MESSAGES;
        drive(theirs.as_mut(), |_, completions| {
            let placed = completions.iter().filter(|c| matches!(c, Completion::Placed { .. }));
            left -= placed.count() as u64;
            left == 0
        })
        .unwrap();
        // The last answers are on their way when the peer says goodbye.
        let _ = drive(theirs.as_mut(), |_, _| false);
    });
    let key = ours.register(source).unwrap();
    let (mut posted, mut written, begin) = (0, 0, Instant::now());
    drive(ours.as_mut(), |connection, completions| {
        let done = completions.iter().filter(|c| matches!(c, Completion::Written { .. }));
        written += done.count() as u64;
        while posted < MESSAGES && posted < written + IN_FLIGHT {
            let offset = posted % IN_FLIGHT * MESSAGE_BYTES as u64;
            posted += 1;
            let part = Part { key, offset, bytes: MESSAGE_BYTES as u64 };
            connection.write(posted, &[part], 1, offset).unwrap();
        }
        written == MESSAGES
    })
    .unwrap();
    let took = begin.elapsed();
    drop(ours);
    taker.join().unwrap();
    took
}

/// Two threads with a runtime each, as two processes would have.
fn plain<F>(
    server: impl FnOnce(TcpStream) -> F + Send + 'static,
    client: impl AsyncFnOnce(TcpStream),
) where
    F: Future<Output = ()>,
{
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            server(stream).await;
        })
    });
    let address = told.recv().unwrap();
    runtime().block_on(async {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        client(stream).await;
    });
    thread.join().unwrap();
}

fn plain_frames() -> Duration {
    let mut took = Duration::ZERO;
    let server = |mut stream: TcpStream| async move {
        let mut body = [0; 64];
        while stream.read_exact(&mut body).await.is_ok() {
            stream.write_all(&body).await.unwrap();
        }
    };
    plain(server, async |mut stream: TcpStream| {
        let (mut body, begin) = ([7; 64], Instant::now());
        for _ in 0..ROUND_TRIPS {
            stream.write_all(&body).await.unwrap();
            stream.read_exact(&mut body).await.unwrap();
        }
        took = begin.elapsed();
    });
    took / ROUND_TRIPS as u32
}

fn plain_messages() -> Duration {
    let mut took = Duration::ZERO;
    let server = |mut stream: TcpStream| async move {
        let mut body = vec![0; MESSAGE_BYTES];
        for _ in 0..MESSAGES {
            stream.read_exact(&mut body).await.unwrap();
        }
        stream.write_all(&[1]).await.unwrap();
    };
    plain(server, async |mut stream: TcpStream| {
        let (body, begin) = (vec![7; MESSAGE_BYTES], Instant::now());
        for _ in 0..MESSAGES {
            stream.write_all(&body).await.unwrap();
        }
        stream.read_exact(&mut [0]).await.unwrap();
        took = begin.elapsed();
    });
    took
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Measures, in turns with plain TCP.
pub fn measure(name: &str, transport: &dyn Transport, listen: &Options, connect: &Options) {
    let (mut trips, mut plain_trips, mut rates, mut plain_rates) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let rate =
        |took: Duration| (MESSAGES as usize * MESSAGE_BYTES * 8) as f64 / 1e9 / took.as_secs_f64();
    for _ in 0..TURNS {
        trips.push(frames(pair(transport, listen, connect)).as_secs_f64() * 1e6);
        plain_trips.push(plain_frames().as_secs_f64() * 1e6);
        rates.push(rate(messages(pair(transport, listen, connect))));
        plain_rates.push(rate(plain_messages()));
    }
    let ratio = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a / b).collect());
    println!(
        "{name}: 64-byte round trip {:.1} us, plain TCP {:.1} us, ratio {:.2}; 1 MiB messages \
         {:.1} Gb/s, plain TCP {:.1} Gb/s, ratio {:.2}",
        median(trips.clone()),
        median(plain_trips.clone()),
        ratio(&trips, &plain_trips),
        median(rates.clone()),
        median(plain_rates.clone()),
        ratio(&rates, &plain_rates),
    );
}
