//! The platform's REST API, played: an HTTP server that keeps connections, answers by table or by script, and counts.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// A request, as far as it matters here. Names of headers are in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    pub fn token(&self) -> &str {
        self.headers.get("x-auth-token").map_or("", String::as_str)
    }
}

/// Whether the connection is kept after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Keep,
    Close,
    /// Ended with a RST.
    Reset,
}

type Script = dyn Fn(&Request, &mut TcpStream) -> io::Result<After> + Send + Sync;

/// An HTTP server that answers as its script does. It ends when it is dropped.
pub struct HttpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<Accepting>,
}

struct Shared {
    script: Box<Script>,
    accepted: AtomicUsize,
    requests: AtomicUsize,
}

/// Copies of the sockets that are being served, by number.
type Live = Mutex<HashMap<usize, TcpStream>>;

/// The threads of one start, and what ends them.
struct Accepting {
    ends: Arc<AtomicBool>,
    live: Arc<Live>,
    thread: JoinHandle<()>,
}

impl HttpServer {
    /// Starts on a free port.
    pub fn start(
        script: impl Fn(&Request, &mut TcpStream) -> io::Result<After> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut server = Self {
            address: listener.local_addr().unwrap(),
            shared: Arc::new(Shared {
                script: Box::new(script),
                accepted: AtomicUsize::new(0),
                requests: AtomicUsize::new(0),
            }),
            accepting: None,
        };
        server.accept(listener);
        server
    }

    fn accept(&mut self, listener: TcpListener) {
        let ends = Arc::new(AtomicBool::new(false));
        let live = Arc::new(Live::default());
        let (shared, has_ended, all) = (self.shared.clone(), ends.clone(), live.clone());
        let thread = thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if has_ended.load(Ordering::SeqCst) {
                    break;
                }
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                let copy = socket.try_clone().unwrap();
                all.lock().unwrap().insert(number, copy);
                let (shared, all) = (shared.clone(), all.clone());
                thread::spawn(move || {
                    // A client that goes away is no failure of the server.
                    let _gone = serve(&socket, &shared);
                    all.lock().unwrap().remove(&number);
                });
            }
            drop(listener);
            shut_down(&all);
        });
        self.accepting = Some(Accepting { ends, live, thread });
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted since the first start.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Requests read since the first start, answered or not.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Closes all connections; it goes on taking new ones.
    pub fn close_all(&self) {
        if let Some(accepting) = &self.accepting {
            shut_down(&accepting.live);
        }
    }

    /// Closes the port and all connections: whoever connects is refused.
    pub fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.ends.store(true, Ordering::SeqCst);
            let _wake = TcpStream::connect(self.address);
            accepting.thread.join().unwrap();
        }
    }

    /// Takes connections on the same port again.
    pub fn start_again(&mut self) {
        assert!(self.accepting.is_none(), "it is running");
        // The port is ours as soon as nothing of the last start is left on it.
        let deadline = Instant::now() + Duration::from_secs(20);
        let listener = loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::yield_now();
        };
        self.accept(listener);
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn shut_down(live: &Live) {
    for socket in live.lock().unwrap().values() {
        let _gone = socket.shutdown(Shutdown::Both);
    }
}

fn serve(socket: &TcpStream, shared: &Shared) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut writer = socket.try_clone()?;
    while let Some(request) = read_request(&mut reader)? {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        match (shared.script)(&request, &mut writer)? {
            After::Keep => {}
            After::Close => break,
            After::Reset => return SockRef::from(socket).set_linger(Some(Duration::ZERO)),
        }
    }
    socket.shutdown(Shutdown::Both)
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let mut next = || words.next().ok_or(io::ErrorKind::InvalidData);
    let mut request = Request {
        method: next()?,
        path: next()?,
        headers: HashMap::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        request.headers.insert(name, value);
    }
    let length = request.headers.get("content-length");
    let length = length.map_or(0, |length| length.parse().unwrap());
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(Some(request))
}

/// Writes a whole answer, after which the connection can be kept.
pub fn answer(socket: &mut impl Write, status: u16, body: &str) -> io::Result<After> {
    let head = format!(
        "HTTP/1.1 {status} As It Is\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + body).as_bytes())?;
    Ok(After::Keep)
}

/// An account as a token sees it.
#[derive(Clone, Debug)]
pub enum Account {
    Yes {
        realm: Option<String>,
        superduper: bool,
    },
    /// Answered with this status.
    Status(u16),
}

#[derive(Default)]
struct Tables {
    /// By token and account id.
    accounts: HashMap<(String, String), Account>,
    /// Each token's answer for all other accounts.
    tokens: HashMap<String, Account>,
    keys: HashMap<String, String>,
    asked: HashMap<String, usize>,
    delay: Duration,
}

/// The platform's REST API below `/v2`: a token that it does not know is answered with 401, an account that the token may
/// not see with 403, a key that is not there with 404.
pub struct PlatformApi {
    server: HttpServer,
    tables: Arc<Mutex<Tables>>,
}

/// The token that may fetch keys.
pub const SERVICE_TOKEN: &str = "service-token-of-the-bridge";

impl PlatformApi {
    /// Starts one that knows nobody.
    pub fn start() -> Self {
        let tables = Arc::new(Mutex::new(Tables::default()));
        let shared = tables.clone();
        let server = HttpServer::start(move |request, socket| {
            let (status, body) = {
                let mut tables = shared.lock().unwrap();
                *tables.asked.entry(request.path.clone()).or_default() += 1;
                let delay = tables.delay;
                let reply = tables.reply(request);
                drop(tables);
                thread::sleep(delay);
                reply
            };
            answer(socket, status, &body)
        });
        Self { server, tables }
    }

    /// For `--auth crossbar:URL`.
    pub fn url(&self) -> String {
        format!("http://{}/v2", self.server.address())
    }

    /// What `token` is told of `account` (32 hex characters, lower case) from now on.
    pub fn set(&self, token: &str, account: &str, answer: Account) {
        let key = (token.to_owned(), account.to_owned());
        self.tables.lock().unwrap().accounts.insert(key, answer);
    }

    /// `account` is one that `token` may see.
    pub fn allow(&self, token: &str, account: &str, realm: &str) {
        let answer = Account::Yes {
            realm: Some(realm.to_owned()),
            superduper: false,
        };
        self.set(token, account, answer);
    }

    /// What `token` is told of every account that was not set for it.
    pub fn set_others(&self, token: &str, answer: Account) {
        let tokens = &mut self.tables.lock().unwrap().tokens;
        tokens.insert(token.to_owned(), answer);
    }

    /// Forgets all of a token: 401 from now on.
    pub fn forget(&self, token: &str) {
        let mut tables = self.tables.lock().unwrap();
        tables.tokens.remove(token);
        tables.accounts.retain(|(of, _), _| of != token);
    }

    pub fn set_key(&self, kid: &str, pem: &str) {
        let keys = &mut self.tables.lock().unwrap().keys;
        keys.insert(kid.to_owned(), pem.to_owned());
    }

    /// Every answer waits so long from now on.
    pub fn set_delay(&self, delay: Duration) {
        self.tables.lock().unwrap().delay = delay;
    }

    /// Questions so far.
    pub fn questions(&self) -> usize {
        self.tables.lock().unwrap().asked.values().sum()
    }

    /// Questions about `account` so far, of all tokens.
    pub fn questions_about(&self, account: &str) -> usize {
        let path = format!("/v2/accounts/{account}");
        let tables = self.tables.lock().unwrap();
        tables.asked.get(&path).copied().unwrap_or_default()
    }

    /// Questions for the key `kid` so far.
    pub fn questions_for_key(&self, kid: &str) -> usize {
        let path = format!("/v2/auth/keys/{kid}");
        let tables = self.tables.lock().unwrap();
        tables.asked.get(&path).copied().unwrap_or_default()
    }

    /// Connections accepted since the first start.
    pub fn accepted(&self) -> usize {
        self.server.accepted()
    }

    /// Closes kept connections.
    pub fn close_all(&self) {
        self.server.close_all();
    }

    /// Gone: whoever connects is refused.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Back on the same port.
    pub fn start_again(&mut self) {
        self.server.start_again();
    }
}

impl Tables {
    fn reply(&self, request: &Request) -> (u16, String) {
        let error = |status: u16, message: &str| {
            let body = serde_json::json!({
                "data": {"message": message}, "error": status.to_string(), "message": message,
                "status": "error", "request_id": "0123", "auth_token": request.token(),
            });
            (status, body.to_string())
        };
        let success = |data: serde_json::Value| {
            let body = serde_json::json!({
                "data": data, "status": "success", "page_size": 1, "revision": "1-abc", "node": "n",
                "version": "5.0", "timestamp": "2026-01-01T00:00:00", "request_id": "0123",
                "auth_token": request.token(),
            });
            (200, body.to_string())
        };
        let token = request.token();
        if request.method != "GET" {
            return error(405, "method not allowed");
        }
        if let Some(kid) = request.path.strip_prefix("/v2/auth/keys/") {
            return match self.keys.get(kid) {
                _ if token != SERVICE_TOKEN => error(401, "invalid credentials"),
                Some(pem) => success(serde_json::json!({"id": kid, "public_key_pem": pem})),
                None => error(404, "bad identifier"),
            };
        }
        let Some(account) = request.path.strip_prefix("/v2/accounts/") else {
            return error(404, "not found");
        };
        let set = self.accounts.get(&(token.to_owned(), account.to_owned()));
        let is_known = || self.accounts.keys().any(|(of, _)| of == token);
        match set.or_else(|| self.tokens.get(token)) {
            Some(Account::Yes { realm, superduper }) => {
                let mut data = serde_json::json!({
                    "id": account, "name": "An Account", "enabled": true, "superduper_admin": superduper,
                    "created": 63_600_000_000_u64, "notifications": {}, "wnm_allow_additions": false,
                });
                if let Some(realm) = realm {
                    data["realm"] = realm.as_str().into();
                }
                success(data)
            }
            Some(Account::Status(status)) => error(*status, "as configured"),
            None if is_known() => error(403, "forbidden"),
            None => error(401, "invalid credentials"),
        }
    }
}
