//! The files of clients' TLS while a process runs: what is told of them, and what a reread takes.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::certificates::{Ca, Certified, LOCAL};
use support::server::{DEMO, Scratch, Server, unix_now, wait_for};

/// How much the time of a certificate's making may differ from that of a look at it, in seconds.
const SLACK: u64 = 300;

fn files(certified: &Certified) -> [String; 2] {
    ["cert.pem", "key.pem"].map(|name| certified.dir().join(name).display().to_string())
}

/// A configuration with TLS for clients on a free port, and these certificates.
fn configuration(certified: &[&Certified]) -> Value {
    let both = certified.iter().map(|certified| files(certified).into());
    let (certs, keys): (Vec<String>, Vec<String>) = both.unzip();
    json!({"use_ssl": true, "ssl_port": 0, "ssl_cert": certs, "ssl_key": keys})
}

fn start(config: &Path) -> Server {
    let file = config.display().to_string();
    Server::start(&[&DEMO[..], &["--config", &file]].concat())
}

fn status(server: &Server) -> Value {
    let (_, text) = server.page("/v2/status");
    serde_json::from_str::<Value>(&text).unwrap()["data"].take()
}

/// Waits until the first certificate expires in so many days.
fn expires_in(server: &Server, days: u64) {
    wait_for(&format!("a certificate of {days} days"), || {
        let expires = server.metric("tls_certificate_expires");
        let expected = unix_now() + days * 86_400;
        (expires.abs_diff(expected) < SLACK).then_some(())
    });
    let told = &status(server)["websocket"]["tls"]["certificate_expires"];
    assert_eq!(*told, server.metric("tls_certificate_expires"));
}

#[test]
fn the_status_tells_where_tls_is_spoken_and_nothing_of_it_where_it_is_not() {
    let ca = Ca::new();
    let config = Scratch::file(
        "config.json",
        &configuration(&[&ca.certify(LOCAL, 90)]).to_string(),
    );
    let server = start(config.path());
    let websocket = status(&server)["websocket"].take();
    assert_eq!(websocket["port"], server.address().port());
    assert_eq!(websocket["tls"]["address"], "127.0.0.1");
    let port = websocket["tls"]["port"].as_u64().unwrap();
    assert_ne!(port, u64::from(server.address().port()));
    let line = format!("listening with TLS on 127.0.0.1:{port}");
    server.wait_for_log(&line);
    expires_in(&server, 90);

    let plain = Server::demo(&[]);
    assert_eq!(status(&plain)["websocket"]["tls"], Value::Null);
    assert_eq!(plain.metric("tls_certificate_expires"), 0);
}

#[test]
fn a_reread_takes_other_files_than_before_and_does_not_wait_for_a_configuration_that_fits() {
    let ca = Ca::new();
    let (first, second) = (ca.certify(LOCAL, 90), ca.certify("DNS:b.example.com", 20));
    let config = Scratch::file("config.json", &configuration(&[&first]).to_string());
    let server = start(config.path());
    expires_in(&server, 90);
    assert!(!server.log().contains("expires"), "{}", server.log());

    config.write(&configuration(&[&first, &second]).to_string());
    server.signal(Signal::HUP);
    expires_in(&server, 20);
    let [cert, _] = files(&second);
    server.wait_for_log(&format!("SIGHUP: {cert}: a certificate for b.example.com"));
    let log = server.log();
    let warned = log
        .lines()
        .filter(|line| line.contains("WARN") && line.contains(&cert));
    assert_eq!(warned.count(), 1, "{log}");

    // The certificate is renewed while somebody is at work on the configuration.
    config.write("{");
    let renewed = ca.certify("DNS:b.example.com", 60);
    for (from, to) in files(&renewed).iter().zip(files(&second)) {
        fs::copy(from, to).unwrap();
    }
    server.signal(Signal::HUP);
    server.wait_for_log("SIGHUP: configuration not reread: ");
    expires_in(&server, 60);

    // The port is as it was at the start; and what does not fit changes nothing.
    config.write("{}");
    server.signal(Signal::HUP);
    server.wait_for_log("use_ssl is off now");
    let mut broken = configuration(&[&first]);
    broken["ssl_key"] = json!(files(&second)[1]);
    config.write(&broken.to_string());
    server.signal(Signal::HUP);
    server.wait_for_log("SIGHUP: TLS files not reread: ");
    expires_in(&server, 60);
}
