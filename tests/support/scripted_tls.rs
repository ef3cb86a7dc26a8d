//! A scripted connection whose client speaks TLS with a real client's code; beneath it is a [`Wire`], on which the records
//! are what is read and written in grains and as there is room.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::scripted::{Scripted, Wire};

/// The client's side.
pub struct TlsClient {
    wire: Rc<RefCell<Wire>>,
    connection: ClientConnection,
    /// What the client was sent, in plain.
    pub received: Vec<u8>,
    /// The server has said that nothing follows.
    pub has_ended: bool,
}

impl TlsClient {
    /// A client that has begun its handshake on `wire`.
    pub fn new(wire: Rc<RefCell<Wire>>, config: Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut connection = ClientConnection::new(config, name).expect("a valid configuration");
        connection.set_buffer_limit(None);
        let mut client = Self {
            wire,
            connection,
            received: Vec::new(),
            has_ended: false,
        };
        client.pump();
        client
    }

    /// The server's end of the connection.
    pub fn socket(&self) -> Scripted {
        Scripted(self.wire.clone())
    }

    pub fn wire(&self) -> &Rc<RefCell<Wire>> {
        &self.wire
    }

    /// Sends plain bytes, when the handshake is done.
    pub fn send(&mut self, plain: &[u8]) {
        self.connection.writer().write_all(plain).expect("room");
        self.pump();
    }

    /// As [`TlsClient::send`], in records of at most so many bytes.
    pub fn send_in(&mut self, plain: &[u8], record: usize) {
        plain.chunks(record).for_each(|part| self.send(part));
    }

    /// Takes other keys from now on (TLS 1.3), and asks the server to do the same.
    pub fn change_keys(&mut self) {
        if self.connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) {
            self.connection.refresh_traffic_keys().expect("TLS 1.3");
            self.pump();
        }
    }

    /// Says that nothing follows.
    pub fn end(&mut self) {
        self.connection.send_close_notify();
        self.pump();
    }

    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// Takes what the server has written, and sends what follows from it. Panics on a wrong record.
    pub fn pump(&mut self) {
        let written = std::mem::take(&mut self.wire.borrow_mut().to_client);
        let mut written = &written[..];
        loop {
            if !written.is_empty() {
                self.connection.read_tls(&mut written).expect("room");
            }
            let state = self
                .connection
                .process_new_packets()
                .expect("valid records");
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.connection
                .reader()
                .read_exact(&mut plain)
                .expect("as many");
            self.received.extend(plain);
            self.has_ended |= state.peer_has_closed();
            if written.is_empty() {
                break;
            }
        }
        let mut out = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut out).expect("memory");
        }
        if !out.is_empty() {
            self.wire.borrow_mut().send(&out);
        }
    }
}
