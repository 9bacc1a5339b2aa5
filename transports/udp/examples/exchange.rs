//! Small messages and large ones over the loopback, by this transport and by plain tokio TCP, in
//! turns in one run: the machine's noise hits both.
//!
//! `cargo run --release -p genie-udp --example exchange -- [exchanges=20000] [megabytes=1024]
//! [rounds=7] [trusted=0] [mtu=..] [flows=..]`

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use genie_transport::transport::{Completion, Connection, Memory, Options, Part, Transport};
use genie_udp::Udp;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};

const SMALL_BYTES: u64 = 64;
const LARGE_BYTES: u64 = 16 << 20;

#[derive(Clone)]
struct Plan {
    exchanges: u64,
    megabytes: u64,
    rounds: u64,
    options: Options,
}

fn plan() -> anyhow::Result<Plan> {
    let mut plan = Plan { exchanges: 20_000, megabytes: 1024, rounds: 7, options: options() };
    for argument in std::env::args().skip(1) {
        let (name, value) = argument.split_once('=').context("arguments are NAME=VALUE")?;
        match name {
            "exchanges" => plan.exchanges = value.parse()?,
            "megabytes" => plan.megabytes = value.parse()?,
            "rounds" => plan.rounds = value.parse()?,
            "trusted" => plan.options.trusted = value == "1",
            _ => {
                plan.options.settings.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    Ok(plan)
}

fn options() -> Options {
    Options {
        address: "127.0.0.1:0".to_owned(),
        connection: 1,
        secret: Some([3; 32]),
        ..Options::default()
    }
}

/// What a client thread is asked to do; it answers with the seconds that took.
enum Task {
    Small(u64),
    Large(u64),
}

struct Client {
    tasks: Sender<Task>,
    took: Receiver<f64>,
}

impl Client {
    /// Seconds of the wall and of the processor.
    fn run(&self, task: Task) -> anyhow::Result<(f64, f64)> {
        let cpu = cpu_seconds();
        self.tasks.send(task)?;
        let took = self.took.recv().context("a client failed, see above")?;
        Ok((took, cpu_seconds() - cpu))
    }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn in_thread(
    name: &str,
    work: impl AsyncFnOnce() -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let told = name.to_owned();
    std::thread::Builder::new().name(told.clone()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let result = runtime.context("no runtime").and_then(|runtime| runtime.block_on(work()));
        if let Err(error) = result {
            eprintln!("{told}: {error:#}");
        }
    })?;
    Ok(())
}

// Plain TCP, as an application would write it.

fn tcp() -> anyhow::Result<Client> {
    let (send_address, address) = channel();
    let (tasks, todo) = channel();
    let (done, took) = channel();
    in_thread("tcp-server", async move || {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        send_address.send(listener.local_addr()?)?;
        let (stream, _) = listener.accept().await?;
        tcp_serve(stream).await
    })?;
    let address: SocketAddr = address.recv()?;
    in_thread("tcp-client", async move || {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut large = vec![1u8; LARGE_BYTES as usize];
        while let Ok(task) = todo.recv() {
            let since = Instant::now();
            match task {
                Task::Small(count) => {
                    let mut small = [0u8; SMALL_BYTES as usize];
                    for _ in 0..count {
                        small[0] = 1;
                        stream.write_all(&small).await?;
                        stream.read_exact(&mut small).await?;
                    }
                }
                Task::Large(count) => {
                    // A head of 64 bytes names the length; one byte says that all is there.
                    let mut head = [0u8; SMALL_BYTES as usize];
                    head[8..16].copy_from_slice(&(count * LARGE_BYTES).to_le_bytes());
                    stream.write_all(&head).await?;
                    for _ in 0..count {
                        large[0] = large[0].wrapping_add(1);
                        stream.write_all(&large).await?;
                    }
                    stream.read_exact(&mut head).await?;
                }
            }
            done.send(since.elapsed().as_secs_f64())?;
        }
        Ok(())
    })?;
    Ok(Client { tasks, took })
}

async fn tcp_serve(mut stream: TcpStream) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut large = vec![0u8; LARGE_BYTES as usize];
    loop {
        let mut head = [0u8; SMALL_BYTES as usize];
        if stream.read_exact(&mut head).await.is_err() {
            return Ok(());
        }
        let mut left = u64::from_le_bytes(head[8..16].try_into()?);
        while left > 0 {
            let most = left.min(LARGE_BYTES) as usize;
            left -= stream.read(&mut large[..most]).await? as u64;
        }
        stream.write_all(&head).await?;
    }
}

// This transport, on the same kind of runtime.

struct Data {
    connection: Box<dyn Connection>,
    waker: AsyncFd<OwnedFd>,
    told: Vec<Completion>,
    small: Part,
    large: Part,
    message: u64,
}

const SMALL_WINDOW: u32 = 1;
const LARGE_WINDOW: u32 = 2;

impl Data {
    fn new(mut connection: Box<dyn Connection>) -> anyhow::Result<Self> {
        let fd = connection.event_fd().try_clone_to_owned()?;
        // SAFETY: the descriptor is a copy that the `AsyncFd` owns.
        let waker = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        let mut own = |bytes| -> anyhow::Result<Part> {
            let key = connection.register(Memory::allocate(bytes)?.0)?;
            Ok(Part { key, offset: 0, bytes })
        };
        let (small, large) = (own(SMALL_BYTES)?, own(LARGE_BYTES)?);
        let (small_window, large_window) = (own(SMALL_BYTES)?, own(LARGE_BYTES)?);
        connection.offer(SMALL_WINDOW, small_window)?;
        connection.offer(LARGE_WINDOW, large_window)?;
        Ok(Data { connection, waker, told: Vec::new(), small, large, message: 0 })
    }

    fn write(&mut self, part: Part, window: u32) -> anyhow::Result<()> {
        self.message += 1;
        Ok(self.connection.write(self.message, &[part], window, 0)?)
    }

    /// Waits for completions: sleeps first, for the caller has just done what there was to do.
    async fn wait(&mut self) -> anyhow::Result<()> {
        self.told.clear();
        loop {
            if !self.connection.arm()? {
                self.waker.readable().await?.clear_ready();
            }
            self.connection.poll(&mut self.told)?;
            if !self.told.is_empty() {
                return Ok(());
            }
        }
    }

    /// Waits for `placed` messages of the peer and `written` ones of ours.
    async fn wait_for(&mut self, mut placed: u64, mut written: u64) -> anyhow::Result<()> {
        while placed > 0 || written > 0 {
            self.wait().await?;
            for told in &self.told {
                match told {
                    Completion::Placed { .. } => placed = placed.saturating_sub(1),
                    Completion::Written { .. } => written = written.saturating_sub(1),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn udp(options: &Options) -> anyhow::Result<Client> {
    let (send_address, address) = channel();
    let (tasks, todo) = channel();
    let (done, took) = channel();
    let listening = options.clone();
    in_thread("udp-server", async move || {
        let mut listener = Udp.listen(&listening)?;
        send_address.send(listener.address())?;
        let connection = loop {
            match listener.accept()? {
                Some(connection) => break connection,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let mut data = Data::new(connection)?;
        loop {
            if data.wait().await.is_err() {
                return Ok(());
            }
            for told in std::mem::take(&mut data.told) {
                if let Completion::Placed { window: SMALL_WINDOW, .. } = told {
                    data.write(data.small, SMALL_WINDOW)?;
                }
            }
        }
    })?;
    let connecting = Options { address: address.recv()?, ..options.clone() };
    in_thread("udp-client", async move || {
        let mut data = Data::new(Udp.connect(&connecting)?)?;
        while let Ok(task) = todo.recv() {
            let since = Instant::now();
            match task {
                Task::Small(count) => {
                    for _ in 0..count {
                        data.write(data.small, SMALL_WINDOW)?;
                        data.wait_for(1, 0).await?;
                    }
                }
                Task::Large(count) => {
                    for _ in 0..count.min(2) {
                        data.write(data.large, LARGE_WINDOW)?;
                    }
                    for begun in 0..count {
                        data.wait_for(0, 1).await?;
                        if begun + 2 < count {
                            data.write(data.large, LARGE_WINDOW)?;
                        }
                    }
                }
            }
            done.send(since.elapsed().as_secs_f64())?;
            if std::env::var_os("EXCHANGE_STATISTICS").is_some() {
                eprintln!("{:?}", data.connection.statistics());
            }
        }
        Ok(())
    })?;
    Ok(Client { tasks, took })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let plan = plan()?;
    if plan.rounds == 0 {
        bail!("rounds must not be 0");
    }
    let clients = [("tcp", tcp()?), ("udp", udp(&plan.options)?)];
    if plan.exchanges > 0 {
        let mut took = [Vec::new(), Vec::new()];
        for round in 0..=plan.rounds {
            for (client, took) in clients.iter().zip(&mut took) {
                let (seconds, _) = client.1.run(Task::Small(plan.exchanges))?;
                // The first round warms up.
                if round > 0 {
                    took.push(seconds / plan.exchanges as f64 * 1e6);
                }
            }
        }
        let ratios = took[1].iter().zip(&took[0]).map(|(udp, tcp)| udp / tcp).collect();
        let [tcp, udp] = took.map(median);
        println!("64 bytes there and back: tcp {tcp:.1} us, udp {udp:.1} us");
        println!("ratio, median of {} rounds: {:.2}", plan.rounds, median(ratios));
    }
    let messages = plan.megabytes * (1 << 20) / LARGE_BYTES;
    if messages > 0 {
        let mut goodput = [Vec::new(), Vec::new()];
        let mut cpu = [Vec::new(), Vec::new()];
        for _ in 0..plan.rounds {
            for (index, (_, client)) in clients.iter().enumerate() {
                let (wall, busy) = client.run(Task::Large(messages))?;
                let bytes = (messages * LARGE_BYTES) as f64;
                goodput[index].push(bytes * 8.0 / wall / 1e9);
                cpu[index].push(busy / bytes * 1e9);
            }
        }
        for ((name, _), (goodput, cpu)) in clients.iter().zip(goodput.into_iter().zip(cpu)) {
            let (goodput, cpu) = (median(goodput), median(cpu));
            println!("{name}: {goodput:.2} Gb/s, {cpu:.2} CPU seconds a gigabyte (both ends)");
        }
    }
    Ok(())
}
