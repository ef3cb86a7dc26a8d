//! `scripts/haproxy.cfg` and `scripts/nginx.conf`: the real balancers before two processes.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::proxy::{Kind, Place, Proxy, Refusal, STRANGER, Tls, Wss, tcp};
use support::broker::Broker;
use support::certificates::LOCAL;
use support::client::{ANY_TOKEN, subscribe};
use support::events::{ACCOUNT, call_event};
use support::left_out::leave_out;
use support::publisher::Publisher;
use support::server::{
    BROKER_PATIENCE, DEMO, PATIENCE, Server, blackhole, dead_address, lines, wait_for, wait_within,
};
use support::wire::UPGRADE_REQUEST;

/// The account whose calls the demo makes up.
const DEMO_ACCOUNT: &str = "00000000000000000000000000000001";

/// Starts both processes of a demo with the same options.
fn demos(kind: Kind, places: &[Place; 2], args: &[&str]) -> [Server; 2] {
    let args = [&DEMO[..], args].concat();
    let servers = places.each_ref().map(|place| place.start(kind, &args));
    servers.iter().for_each(Server::until_ready);
    servers
}

/// Two processes of a demo behind a proxy with its shipped file.
fn pair(kind: Kind, args: &[&str]) -> (Proxy, [Server; 2]) {
    let places = Place::two();
    let servers = demos(kind, &places, args);
    (Proxy::start(kind, &places), servers)
}

/// The sessions of a process, as its listing has them.
fn sessions(server: &Server) -> Vec<Value> {
    let (status, page) = server.page("/v2/sessions?limit=1000");
    assert_eq!(status, 200, "{page}");
    let page: Value = serde_json::from_str(&page).unwrap();
    page["data"].as_array().unwrap().clone()
}

fn session_ids(server: &Server) -> HashSet<String> {
    let id = |session: &Value| session["id"].as_str().unwrap().to_owned();
    sessions(server).iter().map(id).collect()
}

/// Which of two processes has the session of each client.
fn at(servers: &[Server; 2], clients: &[Wss]) -> Vec<usize> {
    let ids = servers.each_ref().map(session_ids);
    let place = |client: &Wss| {
        let id = client.id();
        let found = ids.iter().position(|ids| ids.contains(&id));
        found.unwrap_or_else(|| panic!("{id} is in neither of {ids:?}"))
    };
    clients.iter().map(place).collect()
}

/// How many of these clients the process has.
fn at_one(server: &Server, clients: &[Wss]) -> usize {
    let ids = session_ids(server);
    clients
        .iter()
        .filter(|client| ids.contains(&client.id()))
        .count()
}

/// Clients that come, ping and go, one after another, all the time.
struct Visitors {
    is_over: Arc<AtomicBool>,
    visits: Arc<AtomicU64>,
    thread: JoinHandle<Vec<String>>,
}

impl Visitors {
    fn start(proxy: &Arc<Proxy>) -> Self {
        let (is_over, visits) = (Arc::default(), Arc::default());
        let thread = thread::spawn({
            let (proxy, is_over, visits) =
                (proxy.clone(), Arc::clone(&is_over), Arc::clone(&visits));
            move || {
                let mut failures = Vec::new();
                while !AtomicBool::load(&is_over, Ordering::SeqCst) {
                    if let Err(failure) = visit(&proxy) {
                        failures.push(failure);
                    }
                    AtomicU64::fetch_add(&visits, 1, Ordering::SeqCst);
                }
                failures
            }
        });
        Self {
            is_over,
            visits,
            thread,
        }
    }

    /// Waits until so many more have come and gone.
    fn wait_for(&self, more: u64) {
        let goal = self.visits.load(Ordering::SeqCst) + more;
        wait_within(BROKER_PATIENCE, "visits", || {
            (self.visits.load(Ordering::SeqCst) >= goal).then_some(())
        });
    }

    /// Ends them; panics when one was not served.
    fn assert_all_were_served(self) -> u64 {
        self.is_over.store(true, Ordering::SeqCst);
        let failures = self.thread.join().unwrap();
        let visits = self.visits.load(Ordering::SeqCst);
        assert!(failures.is_empty(), "of {visits}: {failures:?}");
        assert!(visits > 0);
        visits
    }
}

fn visit(proxy: &Proxy) -> Result<(), String> {
    let connected = Wss::connect(proxy, STRANGER, "/", &[]);
    let mut client = connected.map_err(|refusal| format!("{refusal:?}"))?;
    client.try_ping()?;
    client.close()
}

#[test]
fn a_session_is_known_by_the_address_and_port_of_its_client_whatever_that_says() {
    for kind in Kind::each() {
        let (proxy, servers) = pair(kind, &["--log-level", "debug"]);
        let claims: [&[(&str, &str)]; 6] = [
            &[],
            &[("X-Forwarded-For", "198.51.100.1")],
            &[("X-Forwarded-For", "198.51.100.1, 127.0.0.1")],
            &[
                ("X-Forwarded-For", "198.51.100.1:1"),
                ("X-Forwarded-For", "127.0.0.1:2"),
            ],
            &[("Forwarded", "for=198.51.100.1")],
            &[
                ("Forwarded", "for=198.51.100.1, for=127.0.0.1"),
                ("X-Real-IP", "198.51.100.1"),
            ],
        ];
        // From a network of the trusted proxies, too, where a back office may be.
        for ip in [STRANGER, [127, 0, 0, 1]] {
            for claim in claims {
                let mut client = Wss::connect(&proxy, ip, "/", claim).unwrap();
                client.ping();
                let known = servers.each_ref().map(session_ids).concat_all();
                assert_eq!(known, HashSet::from([client.id()]), "{kind:?}: {claim:?}");
                client.close().unwrap();
                for server in &servers {
                    server.wait_for_metric("sessions", 0);
                }
            }
        }
        for server in &servers {
            assert!(!server.log().contains("198.51.100.1"), "{}", server.log());
        }
    }
}

/// The sets of both processes together.
trait ConcatAll {
    fn concat_all(self) -> HashSet<String>;
}

impl ConcatAll for [HashSet<String>; 2] {
    fn concat_all(self) -> HashSet<String> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn the_limit_of_one_address_counts_clients_not_the_proxy() {
    for kind in Kind::each() {
        let (proxy, _servers) = pair(kind, &["--max-connections-per-ip", "1"]);
        let from = |last| Wss::connect(&proxy, [127, 0, 0, last], "/", &[]);
        // One at each of the two processes; the third is one too many at either.
        let mut two = [from(9).unwrap(), from(9).unwrap()];
        match from(9) {
            Err(Refusal::Answer(answer)) => assert_eq!(answer.status(), 429, "{kind:?}"),
            other => panic!("{kind:?}: {:?}", other.err()),
        }
        from(10).unwrap().ping();
        two.iter_mut().for_each(Wss::ping);
    }
}

#[test]
fn behind_another_balancer_the_client_is_whom_that_names() {
    for kind in Kind::each() {
        let places = Place::two();
        let servers = demos(kind, &places, &[]);
        let proxy = Proxy::start_with(kind, &places, &["behind"]);
        let mut stream = tcp(STRANGER, proxy.address()).unwrap();
        stream
            .write_all(b"PROXY TCP4 198.51.100.1 192.0.2.1 4711 443\r\n")
            .unwrap();
        let mut client = Wss::upgrade(proxy.tls(stream), "/", &[]).unwrap();
        client.ping();
        let known = servers.each_ref().map(session_ids).concat_all();
        assert_eq!(
            known,
            HashSet::from(["198.51.100.1:4711".to_owned()]),
            "{kind:?}"
        );
    }
}

#[test]
fn a_client_over_ipv6_is_known_by_its_address_and_port() {
    for kind in Kind::each() {
        let places = Place::two();
        let servers = demos(kind, &places, &[]);
        if TcpListener::bind("[::1]:0").is_err() {
            return leave_out(&"this machine has no IPv6");
        }
        let proxy = Proxy::start_with(kind, &places, &["ipv6"]);
        let stream = TcpStream::connect(proxy.six_address().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Wss::upgrade(proxy.tls(stream), "/", &[]).unwrap();
        client.ping();
        let known = servers.each_ref().map(session_ids).concat_all();
        assert_eq!(known, HashSet::from([client.id()]), "{kind:?}");
        proxy.client().ping();
    }
}

/// What a server answers to bytes over TLS, until it ends the connection.
fn answer(mut tls: Tls, bytes: &[u8]) -> String {
    let _ = tls.write_all(bytes).and_then(|()| tls.flush());
    let mut answer = Vec::new();
    // An end without a farewell is an end.
    let _ = tls.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_proxy_header_of_a_client_is_believed_neither_before_nor_within_tls() {
    const V1: &[u8] = b"PROXY TCP4 198.51.100.1 192.0.2.1 4711 443\r\n";
    const V2: &[u8] =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC6\x33\x64\x01\xC0\0\x02\x01\x12\x67\x01\xBB";
    for kind in Kind::each() {
        let (proxy, servers) = pair(kind, &["--log-level", "debug"]);
        for header in [V1, V2] {
            let mut stream = tcp(STRANGER, proxy.address()).unwrap();
            stream.write_all(header).unwrap();
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said);
            assert!(!String::from_utf8_lossy(&said).contains("101"), "{said:?}");

            let tls = proxy.connect(STRANGER, proxy.address()).unwrap();
            let said = answer(tls, &[header, UPGRADE_REQUEST.as_bytes()].concat());
            assert!(
                said.is_empty() || said.starts_with("HTTP/1.1 400 "),
                "{kind:?}: {said}"
            );
        }
        // Behind a first request on the same connection.
        let tls = proxy.connect(STRANGER, proxy.address()).unwrap();
        let said = answer(tls, &[b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", V1].concat());
        assert!(said.starts_with("HTTP/1.1 200 "), "{kind:?}: {said}");

        proxy.client().ping();
        for server in &servers {
            assert!(!server.log().contains("198.51.100.1"), "{}", server.log());
            assert_eq!(server.metric("proxy_headers_untrusted_total"), 0);
        }
    }
}

#[test]
fn haproxy_sends_nobody_to_a_process_that_is_not_ready() {
    for kind in Kind::each().filter(|kind| *kind == Kind::Haproxy) {
        let places = Place::two();
        let (_bound, nobody) = dead_address();
        let url = format!("amqp://guest:guest@{nobody}/%2f");
        let args = ["--auth", "insecure"];
        let one = places[0].start(kind, &[&args[..], &["--source", "demo"]].concat());
        let two = places[1].start(kind, &[&args[..], &["--amqp", &url]].concat());
        one.until_ready();
        let proxy = Proxy::start(kind, &places);
        wait_for("two is down", || (!proxy.is_up("two")).then_some(()));
        let mut clients: Vec<Wss> = (0..10).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(Wss::ping);
        assert_eq!(sessions(&one).len(), clients.len());
        assert_eq!(sessions(&two).len(), 0);
        drop(clients);
        // A process that serves again is sent clients again.
        drop(two);
        let two = places[1].start(kind, &DEMO);
        wait_for("two is up", || proxy.is_up("two").then_some(()));
        let clients: Vec<Wss> = (0..10).map(|_| proxy.client()).collect();
        assert!(!sessions(&two).is_empty());
        drop(clients);
    }
}

#[test]
fn processes_that_share_a_port_are_one_server_of_haproxy() {
    for kind in Kind::each().filter(|kind| *kind == Kind::Haproxy) {
        let places = Place::two();
        let start = || places[0].start_beside(kind, &[&DEMO[..], &["--reuse-port"]].concat());
        let (mut one, mut two) = (start(), start());
        [&one, &two].into_iter().for_each(Server::until_ready);
        let proxy = Proxy::start_with(kind, &places, &["shared"]);
        // Nobody is at the second place, and its check sees so: the checks work.
        wait_for("the checks", || {
            (proxy.is_up("one") && !proxy.is_up("two")).then_some(())
        });
        let mut clients: Vec<Wss> = (0..20).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(Wss::ping);
        assert!(session_ids(&one).len() < 20 && session_ids(&two).len() < 20);
        drop(clients);
        assert!(one.stop().success());
        let mut clients: Vec<Wss> = (0..5).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(Wss::ping);
        drop(clients);
        assert!(two.stop().success());
        wait_for("the check of the last", || {
            (!proxy.is_up("one")).then_some(())
        });
    }
}

#[test]
fn a_process_that_drains_and_is_replaced_costs_nobody_a_refused_connect_nor_others_their_session() {
    for kind in Kind::each() {
        // As scripts/README.md advises for each.
        let delay = match kind {
            Kind::Haproxy => "3",
            Kind::Nginx => "0",
        };
        let args = ["--drain-seconds", "4", "--drain-delay-seconds", delay];
        let places = Place::two();
        let mut servers = demos(kind, &places, &args);
        let proxy = Arc::new(Proxy::start(kind, &places));
        let clients: Vec<Wss> = (0..20).map(|_| proxy.client()).collect();
        let at = at(&servers, &clients);
        let visitors = Visitors::start(&proxy);
        visitors.wait_for(20);

        servers[0].signal(Signal::TERM);
        let mut stayed = Vec::new();
        let mut told = 0;
        for (mut client, place) in clients.into_iter().zip(at) {
            if place == 1 {
                stayed.push(client);
                continue;
            }
            let (messages, code) = client.read_to_close();
            assert_eq!(messages[0]["name"], "going_away", "{kind:?}: {messages:?}");
            assert_eq!(code, Some(1001), "{kind:?}");
            told += 1;
        }
        assert!(told > 0 && !stayed.is_empty(), "{kind:?}: {told} of 20");
        assert!(servers[0].wait().success());
        visitors.wait_for(50);

        servers[0] = places[0].start(kind, &[&DEMO[..], &args].concat());
        servers[0].until("visitors at the new process", |server| {
            server.metric("sessions_opened_total") > 10
        });
        stayed.iter_mut().for_each(Wss::ping);
        assert!(session_ids(&servers[1]).len() >= stayed.len());
        visitors.assert_all_were_served();
    }
}

#[test]
fn a_process_that_is_killed_is_passed_over_at_once() {
    for kind in Kind::each() {
        let places = Place::two();
        let [one, two] = demos(kind, &places, &[]);
        let proxy = Proxy::start(kind, &places);
        proxy.client().ping();
        one.signal(Signal::KILL);
        wait_for("the end of its port", || {
            tcp([127, 0, 0, 1], one.address()).is_err().then_some(())
        });
        let mut clients: Vec<Wss> = (0..20).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(Wss::ping);
        assert_eq!(sessions(&two).len(), clients.len(), "{kind:?}");
    }
}

#[test]
fn a_full_process_passes_its_clients_to_the_other_and_two_tell_when_to_come_again() {
    for kind in Kind::each() {
        let places = Place::two();
        let one = places[0].start(kind, &[&DEMO[..], &["--max-connections", "3"]].concat());
        let two = places[1].start(kind, &[&DEMO[..], &["--max-connections", "9"]].concat());
        [&one, &two].into_iter().for_each(Server::until_ready);
        let proxy = Proxy::start(kind, &places);
        let mut clients: Vec<Wss> = (0..12).map(|_| proxy.client()).collect();
        clients.iter_mut().for_each(Wss::ping);
        assert_eq!(
            [&one, &two].map(|server| sessions(server).len()),
            [3, 9],
            "{kind:?}"
        );
        match Wss::connect(&proxy, STRANGER, "/", &[]) {
            Err(Refusal::Answer(answer)) => {
                assert_eq!(answer.status(), 503, "{kind:?}");
                assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
            }
            other => panic!("{kind:?}: {:?}", other.err()),
        }
        clients.iter_mut().for_each(Wss::ping);
    }
}

#[test]
fn a_reload_refuses_nobody_and_ends_no_session() {
    for kind in Kind::each() {
        let (proxy, servers) = pair(kind, &[]);
        let proxy = Arc::new(proxy);
        let mut clients: Vec<Wss> = (0..10).map(|_| proxy.client()).collect();
        let places = at(&servers, &clients);
        let visitors = Visitors::start(&proxy);
        for _ in 0..3 {
            visitors.wait_for(10);
            proxy.reload();
            clients.push(proxy.client());
        }
        visitors.wait_for(10);
        visitors.assert_all_were_served();
        clients.iter_mut().for_each(Wss::ping);
        assert_eq!(at(&servers, &clients)[..10], places, "{kind:?}");
        // Old workers stay for as long as they have sessions, and no longer.
        let workers = proxy.workers().len();
        drop(clients);
        wait_for("the end of the old workers", || {
            (proxy.workers().len() < workers).then_some(())
        });
    }
}

#[test]
fn with_the_option_the_clients_of_an_account_are_at_one_process() {
    // Odd, so that taking turns parts them.
    const ACCOUNTS: usize = 31;
    const EACH: usize = 4;
    for kind in Kind::each() {
        let places = Place::two();
        let servers = demos(kind, &places, &[]);
        let proxy = Proxy::start_with(kind, &places, &["sticky"]);
        let account = |number: usize| format!("{number:032x}");
        let mut clients = Vec::new();
        let mut accounts = Vec::new();
        for number in 0..ACCOUNTS * EACH {
            let account = account(number % ACCOUNTS);
            // HAProxy reads the claim of a JWT, too, when the URL has no account.
            let claims = json!({"account_id": account}).to_string();
            let [head, claims] = ["{\"alg\":\"RS256\"}", &claims].map(base64url);
            let bearer = format!("Bearer {head}.{claims}.c2ln");
            let client = if kind == Kind::Haproxy && number % 2 == 0 {
                proxy.client_at("/", &[("Authorization", &bearer)])
            } else {
                proxy.client_at(&format!("/?style=piston&account_id={account}"), &[])
            };
            clients.push(client);
            accounts.push(account);
        }
        let mut counts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for (account, place) in accounts.iter().zip(at(&servers, &clients)) {
            counts.entry(account).or_default()[place] += 1;
        }
        let sum = |place: usize| counts.values().map(|count| count[place]).sum::<usize>();
        let [one, two] = [sum(0), sum(1)];
        let together: usize = counts.values().map(|count| count[0].max(count[1])).sum();
        let all = ACCOUNTS * EACH;
        assert!(one.max(two) <= all * 3 / 4, "{kind:?}: {one} and {two}");
        match kind {
            Kind::Nginx => assert_eq!(together, all, "{counts:?}"),
            // The first few meet processes that have no share yet.
            Kind::Haproxy => assert!(together * 10 >= all * 9, "{together}: {counts:?}"),
        }

        // Who names no account goes anywhere.
        let nameless: Vec<Wss> = (0..20).map(|_| proxy.client()).collect();
        let places: HashSet<usize> = at(&servers, &nameless).into_iter().collect();
        assert_eq!(places.len(), 2, "{kind:?}");

        // One account does not fill a process: HAProxy gives it half more than its share at most.
        if kind == Kind::Haproxy {
            drop((clients, nameless));
            for server in &servers {
                server.wait_for_metric("sessions", 0);
            }
            let one: Vec<Wss> = (0..80)
                .map(|_| proxy.client_at(&format!("/?account_id={DEMO_ACCOUNT}"), &[]))
                .collect();
            let largest = servers.each_ref().map(|server| sessions(server).len());
            assert!(largest.iter().all(|count| *count <= 61), "{largest:?}");
            drop(one);
        }
    }
}

fn base64url(text: &str) -> String {
    data_encoding::BASE64URL_NOPAD.encode(text.as_bytes())
}

#[test]
fn a_client_that_reads_nothing_is_let_go_by_the_proxy_too() {
    for kind in Kind::each() {
        let args = ["--max-outbox-bytes", "65536", "--demo-rate", "2000"];
        let (proxy, servers) = pair(kind, &args);
        let mut slow = proxy.client();
        assert!(proxy.holds(&slow), "{kind:?}");
        slow.send(&subscribe(ANY_TOKEN, DEMO_ACCOUNT, "call.*.*"))
            .unwrap();
        wait_within(BROKER_PATIENCE, "the process closes it", || {
            let closes = |server: &Server| server.metric(r#"closes_total{reason="slow_consumer"}"#);
            (servers.iter().map(closes).sum::<u64>() == 1).then_some(())
        });
        // 10 s in nginx, 30 s in HAProxy.
        wait_within(BROKER_PATIENCE, "the proxy lets it go", || {
            (!proxy.holds(&slow)).then_some(())
        });
        proxy.client().ping();
        drop(slow);
    }
}

#[test]
fn over_plain_tcp_nginx_names_the_client_in_a_proxy_header() {
    for kind in Kind::each().filter(|kind| *kind == Kind::Nginx) {
        let places = Place::two();
        let mut servers = demos(kind, &places, &["--proxy-protocol", "accept"]);
        let proxy = Proxy::start_with(kind, &places, &["stream"]);
        let connect = || {
            let tls = proxy.connect(STRANGER, proxy.stream_address()).unwrap();
            Wss::upgrade(tls, "/", &[("X-Forwarded-For", "198.51.100.1")]).unwrap()
        };
        let mut clients: Vec<Wss> = (0..4).map(|_| connect()).collect();
        clients.iter_mut().for_each(Wss::ping);
        let places_of = at(&servers, &clients);
        assert!(
            places_of.contains(&0) && places_of.contains(&1),
            "{places_of:?}"
        );
        // The other port still serves, and a process that goes is passed over.
        proxy.client().ping();
        drop(clients);
        assert!(servers[0].stop().success());
        let mut clients: Vec<Wss> = (0..4).map(|_| connect()).collect();
        clients.iter_mut().for_each(Wss::ping);
    }
}

#[test]
fn haproxy_passes_tls_on_and_names_the_client_in_a_proxy_header() {
    for kind in Kind::each().filter(|kind| *kind == Kind::Haproxy) {
        let places = Place::two();
        let proxy = Proxy::start_with(kind, &places, &["pass"]);
        let certified = proxy.certify(LOCAL);
        let start = |place: &Place| place.start_secured(kind, &certified, &DEMO);
        let mut servers = places.each_ref().map(start);
        servers.iter().for_each(Server::until_ready);
        for server in ["one", "two"] {
            wait_for("both are up", || {
                proxy.is_up_in("processes_with_tls", server).then_some(())
            });
        }
        let connect = || {
            let tls = proxy.connect(STRANGER, proxy.stream_address()).unwrap();
            Wss::upgrade(tls, "/", &[("X-Forwarded-For", "198.51.100.1")]).unwrap()
        };
        let mut clients: Vec<Wss> = (0..4).map(|_| connect()).collect();
        clients.iter_mut().for_each(Wss::ping);
        // By their own addresses; and each by the TLS of its process.
        let places_of = at(&servers, &clients);
        assert_eq!(places_of.iter().sum::<usize>(), 2, "{places_of:?}");
        for server in &servers {
            assert_eq!(server.metric("tls_sessions"), 2);
        }
        // The other port still serves, and a process that goes is passed over.
        proxy.client().ping();
        drop(clients);
        assert!(servers[0].stop().success());
        let mut clients: Vec<Wss> = (0..4).map(|_| connect()).collect();
        clients.iter_mut().for_each(Wss::ping);
        assert_eq!(at_one(&servers[1], &clients), 4);
    }
}

/// `blackhole sub` through a proxy, and the numbers of the events that it prints; killed on drop.
struct Sub {
    child: Child,
    messages: Receiver<String>,
    numbers: Vec<u64>,
}

impl Sub {
    fn start(proxy: &Proxy) -> Self {
        let url = format!("wss://{}/", proxy.address());
        let mut child = blackhole()
            .args(["sub", "--json", "--url", &url, "--ca-cert", proxy.ca_pem()])
            .args(["--token", ANY_TOKEN, "--account", ACCOUNT, "call.*.*"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            messages: lines(child.stdout.take().unwrap()),
            numbers: Vec::new(),
            child,
        }
    }

    /// Reads up to an event with this number or more; nothing but events may come.
    fn read_to(&mut self, number: u64) {
        while self.numbers.last().is_none_or(|last| *last < number) {
            let line = self
                .messages
                .recv_timeout(BROKER_PATIENCE)
                .expect("a message");
            let message: Value = serde_json::from_str(&line).unwrap();
            match message["name"].as_str() {
                Some("going_away" | "resumed") => {}
                Some("CHANNEL_CREATE") => {
                    let number = message["args"]["Number"].as_u64().expect("a number");
                    self.numbers.push(number);
                }
                _ => panic!("{message}"),
            }
        }
    }
}

impl Drop for Sub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Publishes numbers, some hundred a second, until it is told to end.
struct Numbers {
    latest: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Numbers {
    fn start(url: &str) -> Self {
        let (latest, is_over) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let publisher = Publisher::connect(url);
        let thread = thread::spawn({
            let (latest, is_over) = (latest.clone(), is_over.clone());
            move || {
                while !is_over.load(Ordering::SeqCst) {
                    let number = latest.fetch_add(1, Ordering::SeqCst) + 1;
                    let number_of_test = usize::try_from(number).unwrap();
                    let event = call_event(ACCOUNT, "CHANNEL_CREATE", number_of_test);
                    publisher.publish(
                        "callevt",
                        "call.CHANNEL_CREATE.c",
                        event.to_string().as_bytes(),
                    );
                    thread::park_timeout(Duration::from_millis(5));
                }
                publisher.settle();
            }
        });
        Self {
            latest,
            is_over,
            thread,
        }
    }

    fn latest(&self) -> u64 {
        self.latest.load(Ordering::SeqCst)
    }

    /// Ends it; the last number.
    fn finish(self) -> u64 {
        self.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.latest.load(Ordering::SeqCst)
    }
}

#[test]
fn clients_that_move_when_they_are_told_miss_nothing_while_all_behind_and_in_front_is_replaced() {
    const SUBS: usize = 4;
    let Some(broker) = Broker::own() else { return };
    for kind in Kind::each() {
        let args = [
            "--auth",
            "insecure",
            "--drain-seconds",
            "16",
            // For a client to move and, for a second, read both sessions, on a slow machine too.
            "--going-away-ms",
            "12000",
            "--drain-delay-seconds",
            "3",
        ];
        let url = broker.url();
        let args = [&args[..], &["--amqp", &url]].concat();
        let places = Place::two();
        let start = |place: &Place| {
            let server = place.start(kind, &args);
            wait_within(BROKER_PATIENCE, "ready", || {
                (server.page("/readyz").0 == 200).then_some(())
            });
            server
        };
        let mut servers = places.each_ref().map(start);
        let proxy = Proxy::start(kind, &places);
        let mut subs: Vec<Sub> = (0..SUBS).map(|_| Sub::start(&proxy)).collect();
        wait_within(BROKER_PATIENCE, "all are subscribed", || {
            let count = |server: &Server| server.metric("subscriptions");
            (servers.iter().map(count).sum::<u64>() == SUBS as u64).then_some(())
        });
        let numbers = Numbers::start(&url);
        let flow = |subs: &mut Vec<Sub>| {
            let goal = numbers.latest() + 50;
            subs.iter_mut().for_each(|sub| sub.read_to(goal));
        };
        flow(&mut subs);
        for (server, place) in servers.iter_mut().zip(&places) {
            server.signal(Signal::TERM);
            assert!(server.wait().success());
            *server = start(place);
            if kind == Kind::Haproxy {
                wait_for("both are up", || {
                    ["one", "two"]
                        .into_iter()
                        .all(|name| proxy.is_up(name))
                        .then_some(())
                });
            }
            flow(&mut subs);
            proxy.reload();
            flow(&mut subs);
        }
        let last = numbers.finish();
        for sub in &mut subs {
            sub.read_to(last);
            sub.numbers.sort_unstable();
            assert!(
                sub.numbers.iter().copied().eq(1..=last),
                "{kind:?}: of {last}: {:?}",
                sub.numbers
            );
        }
        let moved = |server: &Server| server.metric("sessions_opened_total");
        assert!(
            servers.iter().map(moved).sum::<u64>() >= SUBS as u64,
            "{kind:?}"
        );
    }
}
