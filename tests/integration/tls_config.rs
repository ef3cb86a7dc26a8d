//! The files of clients' TLS while a process runs: what is told of them, and what a reread takes.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::certificates::{Ca, Certified, LOCAL};
use support::client::ANY_TOKEN;
use support::project_file;
use support::server::{DEMO, Scratch, Server, run_to_end, unix_now, wait_for};

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
    let certified = Ca::new().certify(LOCAL, 90);
    let config = Scratch::file("config.json", &configuration(&[&certified]).to_string());
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

/// What `blackhole sub` says of the first two events of a demo, with these options beside: exit code and stderr.
fn sub(port: u64, ca: &Path, more: &[&str]) -> (Option<i32>, String) {
    let url = format!("wss://localhost:{port}");
    let ca = ca.display().to_string();
    let account = "00000000000000000000000000000001";
    let to = ["sub", "--url", &url, "--ca-cert", &ca, "--token", ANY_TOKEN];
    let what = ["--account", account, "--count", "2", "call.*.*"];
    let output = run_to_end(&[&to[..], more, &what].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// As scripts/README.md tells it to whoever tries it.
#[test]
fn a_certificate_that_openssl_has_made_serves_unless_it_is_a_cas() {
    let readme = fs::read_to_string(project_file("scripts/README.md")).unwrap();
    let command = readme.split("\nopenssl req ").nth(1).expect("the command");
    let command = command.split("\nblackhole").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (command, is_of_a_ca) in [
        (command.to_owned(), false),
        (command.replace("CA:FALSE", "CA:TRUE"), true),
    ] {
        let made = Command::new("sh")
            .args(["-c", &format!("openssl req {command}")])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let config = json!({"use_ssl": true, "ssl_port": 0, "ssl_cert": path("try.pem"), "ssl_key": path("try.key")});
        let config = Scratch::file("config.json", &config.to_string());
        let file = config.path().display().to_string();
        let server = Server::demo(&["--demo-rate", "20", "--config", &file]);
        let port = status(&server)["websocket"]["tls"]["port"].as_u64();
        let (code, said) = sub(port.unwrap(), &path("try.pem"), &[]);
        if is_of_a_ca {
            assert_eq!(code, Some(1), "{said}");
            assert!(
                said.contains("a CA's own, which is for no server"),
                "{said}"
            );
        } else {
            assert_eq!(code, Some(0), "{said}");
            assert_eq!(server.metric("tls_handshakes_total{result=\"full\"}"), 1);
        }
    }
}

#[test]
fn sub_shows_its_certificate_where_one_is_required() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let certified = ca.certify(LOCAL, 90);
    let (one, other) = (
        clients.certify("DNS:client.example", 9),
        ca.certify("DNS:client.example", 9),
    );
    let (own, stranger) = (files(&one), files(&other));
    let mut config = configuration(&[&certified]);
    config["ssl_ca_cert"] = json!(clients.pem());
    config["ssl_client_required"] = json!(true);
    config["demo_rate"] = json!(20);
    let config = Scratch::file("config.json", &config.to_string());
    let server = start(config.path());
    let port = status(&server)["websocket"]["tls"]["port"]
        .as_u64()
        .unwrap();
    let with = |files: &[String; 2]| {
        let [cert, key] = files;
        sub(
            port,
            &ca.pem(),
            &["--client-cert", cert, "--client-key", key],
        )
    };
    let (code, said) = with(&own);
    assert_eq!(code, Some(0), "{said}");
    for (code, said) in [with(&stranger), sub(port, &ca.pem(), &[])] {
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("certificate"), "{said}");
    }
    let [cert, key] = [&own[0], &stranger[1]];
    let (code, said) = with(&[cert.clone(), key.clone()]);
    assert_eq!(code, Some(2), "{said}");
    let expected = format!("{key}: is not the key of the certificate in {cert}");
    assert!(said.contains(&expected), "{said}");
    assert_eq!(sub(port, &ca.pem(), &["--client-key", key]).0, Some(2));
}
