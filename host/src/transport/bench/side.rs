//! The plain TCP connection beside the measured one.
//!
//! It says where to connect and hands out what this run needs (certificates, the secret of a data
//! connection); then it echoes small messages, which is what round trips are compared with.
//! Nothing here is protected: it is a benchmark's.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use genie_tls::issue::{Authority, Validity};
use genie_tls::{CA_FILE, CERT_FILE, Identity, KEY_FILE, Role};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Secret;
use super::wire::SMALL;

/// The name that certificates of a run carry beside the address.
pub const NAME: &str = "genie-bench";
/// Bytes of one line of the side connection.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Time for one line.
const LINE_TIME: Duration = Duration::from_secs(10);

/// 64 hexadecimal digits.
pub fn secret(text: &str) -> Result<Secret, String> {
    let digits = |at: usize| text.get(at..at + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
    let bytes: Option<Vec<u8>> = (0..32).map(|index| digits(index * 2)).collect();
    match bytes.map(Secret::try_from) {
        Some(Ok(secret)) if text.len() == 64 => Ok(secret),
        _ => Err("give 64 hexadecimal digits".into()),
    }
}

pub fn hex(secret: &Secret) -> String {
    secret.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 32 random bytes.
pub fn random() -> anyhow::Result<Secret> {
    use std::io::Read;
    let mut secret = Secret::default();
    let mut file = std::fs::File::open("/dev/urandom").context("random bytes")?;
    file.read_exact(&mut secret).context("random bytes")?;
    Ok(secret)
}

/// Where the side connection listens, for a transport that listens at `address`: the same host and
/// port where that is one of this machine's, the loopback where it is no IP address at all, and
/// nowhere where it is another's (a device that is driven past the kernel).
pub fn listen(address: &str) -> anyhow::Result<Option<TcpListener>> {
    let here = match address.to_socket_addrs().ok().and_then(|mut all| all.next()) {
        Some(here) => here,
        None => SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    match TcpListener::bind(here) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => Ok(None),
        Err(error) => Err(error).with_context(|| format!("listen at {here} beside the transport")),
    }
}

/// Certificates of one run: those of the listening side in a directory, and the other's as text.
pub struct ThrowAway {
    pub dir: tempfile::TempDir,
    pub theirs: Value,
}

impl ThrowAway {
    pub fn make(host: &str) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?;
        let valid = Validity::days(now.as_secs() as i64, 1);
        let authority = Authority::create(NAME, valid)?;
        let mut names = vec![NAME.to_owned()];
        if host.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified()) {
            names.push(host.to_owned());
        }
        let ours = authority.issue(&Identity::new(Role::Node, NAME)?, &names, valid)?;
        let theirs = authority.issue(&Identity::new(Role::Host, NAME)?, &[], valid)?;
        let files = |cert: &str, key: &str| json!({CA_FILE: authority.cert_pem(), CERT_FILE: cert, KEY_FILE: key});
        let dir = keep(&files(&ours.cert_pem, &ours.key_pem))?;
        Ok(ThrowAway { dir, theirs: files(&theirs.cert_pem, &theirs.key_pem) })
    }
}

/// Writes certificates into a directory of their own.
pub fn keep(files: &Value) -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().context("a directory for certificates")?;
    for name in [CA_FILE, CERT_FILE, KEY_FILE] {
        let text = files[name].as_str().with_context(|| format!("{name} was not sent"))?;
        write_private(&dir.path().join(name), text)?;
    }
    Ok(dir)
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("write {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

/// Sends one line.
pub fn say(stream: &mut TcpStream, value: &Value) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(LINE_TIME)).context("side connection")?;
    stream.write_all(format!("{value}\n").as_bytes()).context("side connection")
}

/// Reads one line. Nothing may follow it yet.
pub fn hear(stream: &TcpStream) -> anyhow::Result<Value> {
    use std::io::Read;
    stream.set_read_timeout(Some(LINE_TIME)).context("side connection")?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .context("the other side said nothing; is it `genie-host transport bench --listen`?")?;
    let said: Value = serde_json::from_str(&line)
        .context("the other side is no `genie-host transport bench` of this version")?;
    match said["error"].as_str() {
        Some(error) => anyhow::bail!("the other side refuses: {error}"),
        None => Ok(said),
    }
}

/// Plain TCP on a runtime of one thread: what others would use for small messages.
pub struct Echo {
    runtime: tokio::runtime::Runtime,
    stream: tokio::net::TcpStream,
}

impl Echo {
    pub fn new(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true).context("side connection")?;
        stream.set_nonblocking(true).context("side connection")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("a runtime for the side connection")?;
        let stream = {
            let _inside = runtime.enter();
            tokio::net::TcpStream::from_std(stream).context("side connection")?
        };
        Ok(Echo { runtime, stream })
    }

    /// Answers until the other side ends.
    pub fn answer(mut self) {
        self.runtime.block_on(async {
            let mut message = [0; SMALL as usize];
            while self.stream.read_exact(&mut message).await.is_ok()
                && self.stream.write_all(&message).await.is_ok()
            {}
        });
    }

    /// Does this many round trips and passes the time of each.
    pub fn rounds(&mut self, count: usize, took: &mut Vec<Duration>) -> anyhow::Result<()> {
        let Echo { runtime, stream } = self;
        let rounds = async {
            let mut message = [7; SMALL as usize];
            for _ in 0..count {
                let begin = std::time::Instant::now();
                stream.write_all(&message).await?;
                stream.read_exact(&mut message).await?;
                took.push(begin.elapsed());
            }
            std::io::Result::Ok(())
        };
        runtime.block_on(rounds).context("round trips over plain TCP")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_64_digits() {
        let text = "00ff".repeat(16);
        assert_eq!(hex(&secret(&text).unwrap()), text);
        for wrong in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
            assert!(secret(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn certificates_of_a_run_are_whole() {
        let made = ThrowAway::make("127.0.0.1").unwrap();
        assert!(made.dir.path().join(KEY_FILE).is_file());
        let theirs = keep(&made.theirs).unwrap();
        assert!(theirs.path().join(CERT_FILE).is_file());
        assert!(keep(&json!({})).is_err());
    }

    #[test]
    fn an_address_elsewhere_has_no_side() {
        assert!(listen("127.0.0.1:0").unwrap().is_some());
        assert!(listen("/some/path").unwrap().unwrap().local_addr().unwrap().ip().is_loopback());
        // TEST-NET-1 is nobody's.
        assert!(listen("192.0.2.1:0").unwrap().is_none());
    }
}
