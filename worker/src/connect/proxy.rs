//! Proxies, as `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name them.
//!
//! `wss` relays are reached through `HTTPS_PROXY`, `ws` relays through `HTTP_PROXY`, both by `CONNECT`. The proxy
//! itself is spoken to in plain HTTP.

use std::fmt;
use std::io;
use std::time::Duration;

use http::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::socket::connect_tcp;

/// A proxy's answer to `CONNECT` is at most this long.
const MAX_ANSWER_BYTES: usize = 8 * 1024;

/// Which proxy to use for what.
#[derive(Clone, Debug, Default)]
pub struct ProxyRules {
    https: Option<Proxy>,
    http: Option<Proxy>,
    exempt: Vec<String>,
}

/// A proxy that understands `CONNECT`.
#[derive(Clone)]
pub(crate) struct Proxy {
    host: String,
    port: u16,
    /// `user:password`, when its address has one.
    login: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl ProxyRules {
    /// Reads the variables through `variable`. Lower case wins, as it does elsewhere; empty means none.
    ///
    /// # Errors
    /// The variable that is no address, and what would be one.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let read = |name: &str| {
            let value = variable(&name.to_lowercase()).or_else(|| variable(name));
            value.filter(|value| !value.trim().is_empty())
        };
        let proxy = |name: &str| read(name).map(|value| Proxy::parse(name, value.trim())).transpose();
        let exempt = read("NO_PROXY").unwrap_or_default();
        let exempt =
            exempt.split(',').map(|entry| entry.trim().to_lowercase()).filter(|entry| !entry.is_empty());
        Ok(Self { https: proxy("HTTPS_PROXY")?, http: proxy("HTTP_PROXY")?, exempt: exempt.collect() })
    }

    /// Returns the proxy for a host, if one is to be used.
    pub(crate) fn find(&self, tls: bool, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = if tls { self.https.as_ref() } else { self.http.as_ref() };
        let host = host.trim_matches(['[', ']']).to_lowercase();
        proxy.filter(|_| !self.exempt.iter().any(|entry| exempts(entry, &host, port)))
    }
}

/// An entry is `*`, a host (with all hosts below it), or either with a port.
fn exempts(entry: &str, host: &str, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    let (name, wanted) = match entry.rsplit_once(':') {
        // An IPv6 address has colons, but no port unless it stands in brackets.
        Some((name, digits)) if !name.contains(':') || name.ends_with(']') => {
            (name, digits.parse::<u16>().ok())
        }
        _ => (entry, None),
    };
    let name = name.trim_matches(['[', ']']).trim_start_matches('.');
    let matches = host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
    matches && wanted.is_none_or(|wanted| wanted == port)
}

impl Proxy {
    fn parse(name: &str, value: &str) -> Result<Self, String> {
        // The value is not repeated: it may hold a password.
        let wrong = |what: &str| format!("{name}: {what}; expected http://host:port");
        let text = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
        let uri: Uri = text.parse().map_err(|_| wrong("is no address"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("only plain HTTP proxies are supported"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        let login = authority.as_str().rsplit_once('@').map(|(login, _)| unescape(login));
        Ok(Self { host: authority.host().to_owned(), port: authority.port_u16().unwrap_or(80), login })
    }

    /// Opens a tunnel to a host.
    pub(crate) async fn connect(&self, host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
        let mut tcp = connect_tcp(&self.host, self.port, limit)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("proxy {self:?}: {error}")))?;
        let login = match &self.login {
            Some(login) => format!("proxy-authorization: Basic {}\r\n", base64(login.as_bytes())),
            None => String::new(),
        };
        let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nhost: {host}:{port}\r\n{login}\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let status = self.read_answer(&mut tcp).await?;
        if status.starts_with('2') {
            return Ok(tcp);
        }
        Err(io::Error::other(format!("proxy {self:?} refused a tunnel to {host}:{port}: status {status}")))
    }

    /// Reads to the end of the head and not beyond: what follows belongs to the tunnel.
    async fn read_answer(&self, tcp: &mut TcpStream) -> io::Result<String> {
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == MAX_ANSWER_BYTES {
                return Err(io::Error::other(format!("proxy {self:?} sent a head that is too long")));
            }
            answer.push(tcp.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&answer);
        let status = line.lines().next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..));
        status
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other(format!("proxy {self:?} did not answer in HTTP")))
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| *first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        match code.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let group =
            three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..4 {
            if digit <= three.len() {
                text.push(char::from(DIGITS[(group >> (18 - 6 * digit)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(variables: &[(&str, &str)]) -> Result<ProxyRules, String> {
        ProxyRules::from_variables(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn found(rules: &ProxyRules, tls: bool, host: &str) -> Option<String> {
        rules.find(tls, host, 443).map(|proxy| format!("{proxy:?}"))
    }

    #[test]
    fn each_kind_of_relay_has_its_variable() {
        let rules = rules(&[("HTTPS_PROXY", "http://p:3128"), ("http_proxy", "q")]).unwrap();
        assert_eq!(found(&rules, true, "relay").as_deref(), Some("p:3128"));
        assert_eq!(found(&rules, false, "relay").as_deref(), Some("q:80"));
        assert_eq!(found(&ProxyRules::default(), true, "relay"), None);
    }

    #[test]
    fn no_proxy_names_hosts_with_all_below_them() {
        let list = "localhost, .corp.example,10.0.0.1:443,[::1]:443,other:80";
        let rules = rules(&[("HTTPS_PROXY", "p"), ("NO_PROXY", list)]).unwrap();
        for (host, direct) in [
            ("localhost", true),
            ("a.corp.example", true),
            ("corp.example", true),
            ("notcorp.example", false),
            ("10.0.0.1", true),
            ("[::1]", true),
            ("other", false),
            ("relay", false),
        ] {
            assert_eq!(found(&rules, true, host).is_none(), direct, "{host}");
        }
    }

    #[test]
    fn a_login_is_sent_encoded_and_never_shown() {
        let rules = rules(&[("HTTPS_PROXY", "http://me:p%40ss@p:1")]).unwrap();
        let proxy = rules.find(true, "relay", 443).unwrap();
        assert_eq!(proxy.login.as_deref(), Some("me:p@ss"));
        assert!(!format!("{rules:?}").contains("p@ss"));
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn an_unusable_proxy_is_refused_without_its_password() {
        let error = rules(&[("HTTPS_PROXY", "socks5://me:secret@p")]).unwrap_err();
        assert!(error.starts_with("HTTPS_PROXY:") && !error.contains("secret"), "{error}");
    }
}
