use std::path::Path;

use anyhow::bail;
use genie_tls::store::{Entry, WARN_DAYS, show};
use genie_tls::{Role, date};
use serde_json::{Value, json};

/// Prints what `dir` holds; an error when a certificate cannot be read or there is none.
pub fn run(dir: &Path, as_json: bool, now_s: i64) -> anyhow::Result<()> {
    let entries = show(dir);
    let good: Vec<&Entry> = entries.iter().filter_map(|entry| entry.as_ref().ok()).collect();
    if as_json {
        let certificates: Vec<Value> = good.iter().map(|entry| value(entry, now_s)).collect();
        let problems: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.as_ref().err())
            .map(ToString::to_string)
            .collect();
        let report = json!({ "dir": dir, "certificates": certificates, "problems": problems });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", dir.display());
        for entry in &good {
            print!("{}", text(dir, entry, now_s));
        }
        for problem in entries.iter().filter_map(|entry| entry.as_ref().err()) {
            println!("  problem: {problem}");
        }
    }
    if good.len() < entries.len() {
        bail!("not every certificate in {} can be read; see above", dir.display());
    }
    Ok(())
}

fn text(dir: &Path, entry: &Entry, now_s: i64) -> String {
    let file = entry.path.strip_prefix(dir).unwrap_or(&entry.path).display();
    let mut text = format!("  {}  ({file})\n", who(entry));
    if !entry.addresses.is_empty() {
        text += &format!("    addresses: {}\n", entry.addresses.join(", "));
    }
    if entry.identity.is_some() {
        text += &format!("    issued by: {}\n", common_name(&entry.issuer));
    }
    let left = entry.days_left(now_s);
    text += &format!("    expires: {} ({left} days left)\n", date(entry.not_after_s));
    if let Some(warning) = warning(entry, now_s) {
        text += &format!("    warning: {warning}\n");
    }
    text
}

fn value(entry: &Entry, now_s: i64) -> Value {
    json!({
        "file": entry.path,
        "role": role(entry),
        "name": entry.identity.as_ref().map_or(common_name(&entry.subject), |who| who.name()),
        "addresses": entry.addresses,
        "issuer": common_name(&entry.issuer),
        "not_before_s": entry.not_before_s,
        "not_after_s": entry.not_after_s,
        "days_left": entry.days_left(now_s),
        "warning": warning(entry, now_s),
    })
}

fn who(entry: &Entry) -> String {
    match &entry.identity {
        Some(identity) => identity.to_string(),
        None => common_name(&entry.subject).to_owned(),
    }
}

fn role(entry: &Entry) -> &'static str {
    entry.identity.as_ref().map_or("authority", |identity| identity.role().as_str())
}

fn warning(entry: &Entry, now_s: i64) -> Option<String> {
    let left = entry.days_left(now_s);
    let when = match left {
        ..0 => "has expired".to_owned(),
        0..WARN_DAYS => format!("expires in {left} days"),
        _ => return None,
    };
    let renew = match &entry.identity {
        None => "`genie-host certs rotate --ca` replaces it".to_owned(),
        Some(own) if own.role() == Role::Host && !issued(&entry.path) => {
            "`genie-host certs rotate` renews it".to_owned()
        }
        Some(who) => {
            format!(
                "`genie-host certs issue {} {}` renews it, then copy it",
                who.role(),
                who.name()
            )
        }
    };
    Some(format!("{when}; {renew}"))
}

fn issued(path: &Path) -> bool {
    path.ancestors().nth(2).is_some_and(|dir| dir.ends_with(genie_tls::store::ISSUED_DIR))
}

/// The name in `CN=NAME`; authorities and certificates of Genie have nothing else.
fn common_name(name: &str) -> &str {
    name.strip_prefix("CN=").unwrap_or(name)
}
