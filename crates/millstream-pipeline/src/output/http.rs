//! A POST for each batch.

use super::Tries;
use super::sink::Refused;
use crate::batch::Batch;
use crate::file::model::HttpOutput;
use crate::file::units::show_duration;
use crate::file::url;
use millstream_flow::BoxError;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Bytes of a refusal's body that are shown.
const SHOWN: usize = 200;

/// POSTs batches to one URL.
pub(crate) struct HttpClient {
    client: Client,
    url: String,
    /// The URL as errors show it, without a password.
    shown: String,
    ndjson: bool,
    timeout: Duration,
}

/// What became of one try.
enum Tried {
    Done,
    /// Trying again may help, after the wait that the other side asked for.
    Again(String, Option<Duration>),
    /// The other side does not want these items.
    Unwanted(String),
}

impl HttpClient {
    /// Sets the client up; connects when the first batch comes.
    pub(crate) fn new(output: &HttpOutput) -> Result<Self, BoxError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &output.headers {
            let value = HeaderValue::from_str(value)
                .map_err(|error| format!("header `{}` has no valid value: {error}", name.value))?;
            headers.insert(HeaderName::from_bytes(name.value.as_bytes())?, value);
        }
        let content_type = if output.ndjson { "application/x-ndjson" } else { "application/json" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        // A redirect would turn the POST into a GET, and the batch into nothing.
        let client = Client::builder()
            .default_headers(headers)
            .timeout(output.timeout)
            .redirect(Policy::none())
            .tls_backend_preconfigured(tls(output)?)
            .build()?;
        let (url, shown) = (output.url.value.clone(), url::shown(&output.url.value).into_owned());
        Ok(HttpClient { client, url, shown, ndjson: output.ndjson, timeout: output.timeout })
    }

    /// Returns when the other side has taken the batch.
    pub(crate) async fn write(&self, batch: &Batch, mut tries: Tries) -> Result<(), Refused> {
        let body = bytes::Bytes::from(self.body(batch));
        loop {
            match self.post(body.clone()).await {
                Tried::Done => return Ok(()),
                Tried::Unwanted(why) => return Err(Refused::Items(why)),
                Tried::Again(why, wait) => {
                    if !tries.again(wait).await {
                        return Err(Refused::Items(match tries.made() {
                            0 | 1 => format!("{why}; `on_error.retry` would try again"),
                            made => format!("{why}; that was try {made}, the last"),
                        }));
                    }
                }
            }
        }
    }

    fn body(&self, batch: &Batch) -> Vec<u8> {
        let mut body = Vec::with_capacity(batch.bytes().len() + batch.len() + 2);
        for (index, line) in batch.lines().enumerate() {
            if !self.ndjson {
                body.push(if index == 0 { b'[' } else { b',' });
            }
            body.extend_from_slice(line);
            if self.ndjson {
                body.push(b'\n');
            }
        }
        if !self.ndjson {
            body.push(b']');
        }
        body
    }

    async fn post(&self, body: bytes::Bytes) -> Tried {
        let response = match self.client.post(&self.url).body(body).send().await {
            Ok(response) => response,
            Err(error) => return Tried::Again(unsent(&self.shown, self.timeout, error), None),
        };
        let status = response.status();
        if status.is_success() {
            return Tried::Done;
        }
        let wait = retry_after(response.headers());
        let elsewhere = elsewhere(&response);
        let why = format!("{} answered {status}{}{elsewhere}", self.shown, shown(response).await);
        if status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        {
            Tried::Again(why, wait)
        } else {
            Tried::Unwanted(why)
        }
    }
}

/// How long a server wants to be left alone: seconds, or a moment by its own clock (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let wait = text(RETRY_AFTER)?;
    if !wait.is_empty() && wait.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than numbers hold is long.
        return Some(Duration::from_secs(wait.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(wait).ok()?;
    #[expect(clippy::disallowed_methods, reason = "a server that does not say its time means everybody's")]
    let now = text(DATE).and_then(|now| httpdate::parse_http_date(now).ok()).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

/// Why there is no answer, and what to look at. The client's own words tell of its layers, the system's of codes.
fn unsent(url: &str, timeout: Duration, error: reqwest::Error) -> String {
    let (timed_out, connecting) = (error.is_timeout(), error.is_connect());
    if timed_out && !connecting {
        let timeout = show_duration(timeout);
        return format!("{url} did not answer within {timeout}, which is `output.http.timeout`");
    }
    let error = error.without_url();
    let chain = millstream_flow::chain(&error);
    let (mut refused, mut tls) = (false, None);
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = next {
        tls = tls.or_else(|| cause.downcast_ref::<rustls::Error>());
        let io = cause.downcast_ref::<io::Error>();
        refused |= io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused);
        // What is in such an error is not its source: that is the source of what is in it.
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    match tls {
        Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            return format!(
                "nobody that is trusted has signed the certificate of {url}; `output.http.ca` names whom to trust, too"
            );
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            return format!("the certificate of {url} is not valid: {why}");
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            return format!("{url} does not answer by TLS; is it `http://`?");
        }
        Some(why) => return format!("no TLS with {url}: {why}"),
        None => {}
    }
    if refused {
        format!("nothing listens at {url}; is the server running, and is the port right?")
    } else if connecting && chain.contains("dns error") {
        format!("the host of {url} is not known; is its name right?")
    } else if connecting && timed_out {
        format!("{url} cannot be reached: no connection within {}", show_duration(timeout))
    } else if connecting {
        format!("{url} cannot be reached: {}", chain.rsplit(": ").next().unwrap_or(&chain))
    } else {
        format!("cannot POST to {url}: {chain}")
    }
}

/// Whom the client trusts: for plain http nobody, else what the system trusts, and the certificates of `ca`.
fn tls(output: &HttpOutput) -> Result<ClientConfig, BoxError> {
    let mut roots = RootCertStore::empty();
    if output.url.starts_with("https:") {
        // One certificate of the system's that cannot be read does not make the others worse.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(ca) = &output.ca {
            let unusable =
                |what: String| format!("`ca` {}: {what}; name a PEM file of certificates", ca.display());
            let certificates =
                CertificateDer::pem_file_iter(&**ca).map_err(|error| unusable(error.to_string()))?;
            let before = roots.len();
            for certificate in certificates {
                let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
                roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
            }
            if roots.len() == before {
                return Err(unusable("it has no certificate".to_owned()).into());
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(versions.with_root_certificates(roots).with_no_client_auth())
}

/// What to do about an answer that sends the batch elsewhere; empty for others.
fn elsewhere(response: &Response) -> String {
    if !response.status().is_redirection() {
        return String::new();
    }
    let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
    let to = target.map(|target| url::shown(target).chars().take(SHOWN).collect());
    let to: String = to.unwrap_or_else(|| "the place itself".to_owned());
    format!("; a redirect is not followed: write {to} in `output.http.url`")
}

/// The first bytes of a refusal, on one line.
async fn shown(mut response: Response) -> String {
    let mut text = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        text.extend_from_slice(&piece[..piece.len().min(SHOWN - text.len())]);
        if text.len() >= SHOWN {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { text } else { format!(": {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_by_seconds_or_by_its_clock_how_long_it_wants_to_be_left_alone() {
        let wait = |fields: &[(HeaderName, &'static str)]| {
            let fields = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            retry_after(&fields.collect())
        };
        let after = |value| wait(&[(RETRY_AFTER, value), (DATE, "Wed, 21 Oct 2015 07:28:00 GMT")]);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(after("120"), seconds(120));
        assert_eq!(after("99999999999999999999999"), seconds(u64::MAX));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:30 GMT"), seconds(30));
        assert_eq!(after("Wednesday, 21-Oct-15 07:29:00 GMT"), seconds(60));
        assert_eq!(after("Wed, 21 Oct 2015 07:27:00 GMT"), seconds(0));
        for bad in ["", "-1", "soon", "1.5"] {
            assert_eq!(after(bad), None, "{bad:?}");
        }
        assert!(wait(&[(RETRY_AFTER, "Fri, 31 Dec 9999 23:59:59 GMT")]) > seconds(1 << 30));
        assert_eq!(wait(&[]), None);
    }
}
