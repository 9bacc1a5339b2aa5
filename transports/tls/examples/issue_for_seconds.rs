//! Makes a node's certificate that ends soon, for the end-to-end tests: `genie-host certs` counts
//! in days.
//!
//!     issue_for_seconds DIR NAME ADDRESS OUT SECONDS

use std::error::Error;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use genie_tls::issue::{Authority, Validity};
use genie_tls::store::AUTHORITY_FILE;
use genie_tls::{CA_FILE, CERT_FILE, Identity, KEY_FILE, Role};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, name, address, out, seconds] = &args[..] else {
        return Err("give DIR NAME ADDRESS OUT SECONDS".into());
    };
    let (dir, out, seconds) = (PathBuf::from(dir), PathBuf::from(out), seconds.parse::<i64>()?);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() as i64;
    let authority = Authority::from_pem(&std::fs::read(dir.join(AUTHORITY_FILE))?)?;
    let node = Identity::new(Role::Node, name)?;
    let life = Validity { to_s: now_s + seconds, ..Validity::days(now_s, 0) };
    let issued = authority.issue(&node, std::slice::from_ref(address), life)?;
    std::fs::create_dir_all(&out)?;
    std::fs::copy(dir.join(CA_FILE), out.join(CA_FILE))?;
    std::fs::write(out.join(CERT_FILE), issued.cert_pem)?;
    std::fs::write(out.join(KEY_FILE), issued.key_pem)?;
    std::fs::set_permissions(out.join(KEY_FILE), Permissions::from_mode(0o600))?;
    Ok(())
}
