//! Alerts (RFC 8446, 6): what one end tells the other before it goes.

/// The description of an alert, as its registry numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert(pub(super) u8);

impl Alert {
    /// The regular end.
    pub const CLOSE_NOTIFY: Self = Self(0);
    pub(super) const UNEXPECTED_MESSAGE: Self = Self(10);
    pub(super) const BAD_RECORD_MAC: Self = Self(20);
    pub(super) const RECORD_OVERFLOW: Self = Self(22);
    pub(super) const ILLEGAL_PARAMETER: Self = Self(47);
    pub(super) const DECODE_ERROR: Self = Self(50);
    pub(super) const USER_CANCELED: Self = Self(90);

    /// The alert's two bytes: its level, and itself.
    pub(super) fn bytes(self) -> [u8; 2] {
        let level = match self {
            Self::CLOSE_NOTIFY | Self::USER_CANCELED => 1,
            _ => 2,
        };
        [level, self.0]
    }

    /// A record with the alert in the clear: what there is to say before there are keys.
    #[must_use]
    pub fn clear_record(self) -> [u8; 7] {
        let [level, description] = self.bytes();
        [21, 3, 3, 0, 2, level, description]
    }

    /// The name in the registry, in small letters; of one that TLS 1.2 and 1.3 do not know, `unknown`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            21 => "decryption_failed",
            22 => "record_overflow",
            30 => "decompression_failure",
            40 => "handshake_failure",
            41 => "no_certificate",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => "unknown",
        }
    }
}
