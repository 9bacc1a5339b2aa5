//! Who gets in, and who is told why not.

#[path = "../../tcp/tests/certificates/mod.rs"]
mod certificates;
#[path = "../../tcp/tests/visitors/mod.rs"]
mod visitors;

use genie_quic::Quic;

#[test]
fn identities_are_told() {
    visitors::identities_are_told(&Quic);
}

#[test]
fn wrong_certificates_are_refused() {
    visitors::wrong_certificates_are_refused(&Quic);
}

#[test]
fn expired_certificates_are_told() {
    visitors::expired_certificates_are_told(&Quic);
}

#[test]
fn wrong_names_are_refused() {
    visitors::wrong_names_are_refused(&Quic);
}

#[test]
fn absent_certificates_are_told() {
    visitors::absent_certificates_are_told(&Quic);
}

#[test]
fn wrong_secrets_are_refused() {
    for trusted in [false, true] {
        visitors::wrong_secrets_are_refused(&Quic, trusted);
    }
}

#[test]
fn certificates_are_followed() {
    visitors::certificates_are_followed(&Quic);
}
