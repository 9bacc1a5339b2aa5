//! `genie-host certs`: makes, renews and shows the certificates of this host and of its nodes.
//!
//! The work is done by `genie_tls::store`; here are the flags and the words.

mod next;
mod show;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;
use clap::{Args, Subcommand};
use genie_tls::issue::{DAYS_DEFAULT, DAYS_MAX};
use genie_tls::store::{IssuedTo, Store};
use genie_tls::{Identity, Role, date, default_dir};

/// The longest name that is taken from the machine's own.
const NAME_BYTES_MAX: usize = 64;

#[derive(Subcommand)]
pub enum CertsCommand {
    /// Make an authority and this host's certificate; once, on the machine of the host.
    Init {
        #[command(flatten)]
        dir: DirArgs,
        /// This host's name in its certificate; the machine's when not given.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        life: LifeArgs,
    },
    /// Make or renew the certificate of a node or of another host, ready to copy there.
    #[command(subcommand)]
    Issue(IssueCommand),
    /// Renew this host's certificate, or replace the authority.
    ///
    /// Running hosts and nodes take new files at their next connection. Replacing the authority
    /// has two steps, with copying between them: `rotate --ca`, then `rotate --finish`.
    Rotate {
        /// Begin to replace the authority: the old and the new one are trusted until `--finish`.
        #[arg(long, conflicts_with = "finish")]
        ca: bool,
        /// Stop trusting the old authority, when each machine has its new files.
        #[arg(long)]
        finish: bool,
        #[command(flatten)]
        dir: DirArgs,
        #[command(flatten)]
        life: LifeArgs,
    },
    /// Show certificates: who, where, until when. Works on a node's directory too.
    Show {
        #[command(flatten)]
        dir: DirArgs,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub enum IssueCommand {
    /// For a machine that runs genie-node.
    Node {
        /// The node's name, for people and logs.
        name: String,
        /// A host name or IP address that hosts dial; repeatable. A renewed certificate keeps its
        /// addresses when none is given.
        #[arg(long, value_name = "HOST_OR_IP", num_args = 1..)]
        address: Vec<String>,
        #[command(flatten)]
        to: IssueArgs,
    },
    /// For another machine whose host uses the same nodes.
    Host {
        /// The host's name; nodes count memory and sessions by it.
        name: String,
        #[command(flatten)]
        to: IssueArgs,
    },
}

#[derive(Args)]
pub struct IssueArgs {
    /// Where to put ca.pem, cert.pem and key.pem; DIR/issued/ROLE-NAME when not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    dir: DirArgs,
    #[command(flatten)]
    life: LifeArgs,
}

#[derive(Args)]
pub struct DirArgs {
    /// The certificate directory; $XDG_CONFIG_HOME/genie/certs or ~/.config/genie/certs when not
    /// given.
    #[arg(long, env = "GENIE_CERTS", value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl DirArgs {
    fn path(self) -> anyhow::Result<PathBuf> {
        let var = std::env::var_os;
        let dir = self.dir.or_else(|| default_dir(var("XDG_CONFIG_HOME"), var("HOME")));
        let dir = dir.context("neither XDG_CONFIG_HOME nor HOME is set; give `--dir DIR`")?;
        // Next steps are copied into other shells.
        std::path::absolute(&dir).with_context(|| format!("{} cannot be used", dir.display()))
    }
}

#[derive(Args)]
pub struct LifeArgs {
    /// Days until the certificate expires.
    #[arg(long, value_name = "N", default_value_t = DAYS_DEFAULT,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
}

pub fn run(command: CertsCommand) -> anyhow::Result<()> {
    let now_s = now_s()?;
    match command {
        CertsCommand::Init { dir, name, life } => {
            let dir = dir.path()?;
            let made = Store::init(&dir, &name.unwrap_or_else(machine), life.days, now_s)?;
            println!("made an authority and the certificate of {}", told(&made));
            print!("{}", next::after_init(&dir));
        }
        CertsCommand::Issue(command) => {
            let (role, name, address, to) = match command {
                IssueCommand::Node { name, address, to } => (Role::Node, name, address, to),
                IssueCommand::Host { name, to } => (Role::Host, name, Vec::new(), to),
            };
            let dir = to.dir.path()?;
            let out = to.out.map(std::path::absolute).transpose()?;
            let identity = Identity::new(role, &name)?;
            let store = Store::open(&dir, now_s)?;
            let issued = store.issue(&identity, &address, to.life.days, out.as_deref())?;
            println!("issued the certificate of {}", told(&issued));
            print!("{}", next::after_issue(&dir, &issued));
        }
        CertsCommand::Rotate { ca: true, dir, life, .. } => {
            let dir = dir.path()?;
            let issued = Store::open(&dir, now_s)?.rotate_authority(life.days)?;
            println!("made a new authority; {} trusts it and the old one", dir.display());
            for one in &issued {
                println!("issued again: {}", told(one));
            }
            print!("{}", next::after_rotate_ca(&dir, &issued));
        }
        CertsCommand::Rotate { finish, dir, life, .. } => {
            let dir = dir.path()?;
            let store = Store::open(&dir, now_s)?;
            match finish {
                true => {
                    println!("renewed {}", told(&store.finish(life.days)?));
                    println!("the old authority is trusted no more here");
                    print!("{}", next::after_finish(&store.issued()?, &dir));
                }
                false => {
                    println!("renewed {}", told(&store.rotate(life.days)?));
                    print!("{}", next::AFTER_ROTATE);
                }
            }
        }
        CertsCommand::Show { dir, json } => show::run(&dir.path()?, json, now_s)?,
    }
    Ok(())
}

fn told(issued: &IssuedTo) -> String {
    let at = match issued.addresses.is_empty() {
        true => String::new(),
        false => format!(" at {}", issued.addresses.join(", ")),
    };
    let until = date(issued.not_after_s);
    format!("{}{at}, good until {until}, in {}", issued.identity, issued.dir.display())
}

/// The machine's name as far as a certificate takes it.
fn machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name: String = name.chars().filter(plain).take(NAME_BYTES_MAX).collect();
    match name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()) {
        "" => "host".to_owned(),
        name => name.to_owned(),
    }
}

fn now_s() -> anyhow::Result<i64> {
    let since = SystemTime::UNIX_EPOCH.elapsed();
    Ok(since.context("the clock is before 1970; set it right")?.as_secs() as i64)
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
