//! What a person does next, as commands that can be copied.

use std::fmt::Write;
use std::path::Path;

use genie_tls::store::{ISSUED_DIR, IssuedTo};
use genie_tls::{Identity, Role};

use super::quoted;

/// The port in examples; any will do.
const PORT: u16 = 4610;
/// Where the files go on the other machine, below its user's home.
const THERE: &str = ".config/genie/certs";

pub const AFTER_ROTATE: &str = "nothing to copy: a running host takes it at its next connection, and nodes know its authority\n";

pub fn after_init(dir: &Path) -> String {
    format!(
        "\nnext, for each machine that will run a node:\n  genie-host certs issue node NAME \
         --address HOST_OR_IP{}\nkeep {} to yourself: who has it can make certificates for \
         everybody\n",
        dir_flag(dir),
        quoted(&dir.join(genie_tls::store::AUTHORITY_FILE)),
    )
}

pub fn after_issue(dir: &Path, issued: &IssuedTo) -> String {
    let mut text = "\nnext:\n".to_owned();
    let machine = issued.addresses.first().map_or("MACHINE", String::as_str);
    copy(&mut text, machine, &issued.dir, true);
    match issued.identity.role() {
        Role::Node => {
            line(
                &mut text,
                "start the node there:",
                &[format!("genie-node --listen quic://0.0.0.0:{PORT} --certs ~/{THERE}")],
            );
            line(
                &mut text,
                "use it from here:",
                &[format!(
                    "genie-host serve --node quic://{}:{PORT} --certs {}",
                    bracketed(machine),
                    quoted(dir)
                )],
            );
        }
        Role::Host => line(
            &mut text,
            "use nodes from there:",
            &[format!("genie-host serve --node quic://NODE:{PORT} --certs ~/{THERE}")],
        ),
    }
    let key = quoted(&issued.dir.join(genie_tls::KEY_FILE));
    line(&mut text, "when it is copied, its key is not needed here:", &[format!("rm {key}")]);
    text
}

pub fn after_rotate_ca(dir: &Path, issued: &[IssuedTo]) -> String {
    let mut text = "\nnext, in this order:\n".to_owned();
    // Nodes first: a host with a certificate of the new authority finds only nodes that know it.
    for role in [Role::Node, Role::Host] {
        for one in issued.iter().filter(|one| one.identity.role() == role) {
            let machine = one.addresses.first().map_or(one.identity.name(), String::as_str);
            copy(&mut text, machine, &one.dir, true);
        }
    }
    line(
        &mut text,
        "when every machine has its new files (they are used without a restart):",
        &[format!("genie-host certs rotate --finish{}", dir_flag(dir))],
    );
    text
}

pub fn after_finish(issued: &[(Identity, Vec<String>)], dir: &Path) -> String {
    if issued.is_empty() {
        return String::new();
    }
    let mut text = "\nnext, so that the others stop trusting the old authority too:\n".to_owned();
    for (identity, addresses) in issued {
        let machine = addresses.first().map_or(identity.name(), String::as_str);
        let from = dir.join(ISSUED_DIR).join(format!("{}-{}", identity.role(), identity.name()));
        copy(&mut text, machine, &from, false);
    }
    text
}

/// Commands that bring a directory's files to a machine.
fn copy(text: &mut String, machine: &str, from: &Path, with_key: bool) {
    let to = bracketed(machine);
    let what = match with_key {
        true => "{ca,cert,key}.pem",
        false => "ca.pem",
    };
    line(
        text,
        &format!("copy to {machine}:"),
        &[
            format!("ssh {machine} mkdir -p -m 700 {THERE}"),
            format!("scp -p {}/{what} {to}:{THERE}/", quoted(from)),
        ],
    );
}

fn line(text: &mut String, what: &str, commands: &[String]) {
    writeln!(text, "- {what}").expect("a string takes everything");
    for command in commands {
        writeln!(text, "    {command}").expect("a string takes everything");
    }
}

/// An IPv6 address as scp and URLs take it.
fn bracketed(machine: &str) -> String {
    match machine.contains(':') {
        true => format!("[{machine}]"),
        false => machine.to_owned(),
    }
}

fn dir_flag(dir: &Path) -> String {
    let default =
        genie_tls::default_dir(std::env::var_os("XDG_CONFIG_HOME"), std::env::var_os("HOME"));
    match default.as_deref() == Some(dir) {
        true => String::new(),
        false => format!(" --dir {}", quoted(dir)),
    }
}
