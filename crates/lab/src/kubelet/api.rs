//! Requests as a kubelet sends them.

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::Value;
use std::{io::Read, time::Duration};
use yurt_transport::{BoxError, Client, ClientError, ClientOptions, ResponseBody, collect, full};
use yurt_wire::{
    Encoding, Object, Status,
    list::{self, SplitList},
};

/// What the recorded kubelet calls itself.
const USER_AGENT: &str = "kubelet/v1.36.0 (linux/amd64) kubernetes/0000000";
/// The largest object a kubelet reads (etcd's limit is far below).
const MAX_BODY: usize = 16 << 20;
/// The default request time-out of a kubelet's node and lease clients is 5 to 10 seconds.
const TIMEOUT: Duration = Duration::from_secs(10);
const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The server was not reached, or broke off.
    #[error("{0}")]
    Unreachable(BoxError),
    /// The server said no.
    #[error("{code}: {message}")]
    Refused {
        /// HTTP code.
        code: u16,
        /// The Status' message, or what came instead.
        message: String,
    },
    /// What we have to say or what came back is no object.
    #[error("{0}")]
    Malformed(String),
}

impl CallError {
    /// The HTTP code, when the server answered.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused { code, .. } => *code >= 500 || *code == 429,
            Self::Malformed(_) => false,
        }
    }
}

impl From<ClientError> for CallError {
    fn from(error: ClientError) -> Self {
        Self::Unreachable(error.into())
    }
}

impl From<yurt_wire::object::Malformed> for CallError {
    fn from(error: yurt_wire::object::Malformed) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A client of the node's hub.
#[derive(Clone, Debug)]
pub(super) struct Api {
    client: Client,
    encoding: Encoding,
}

impl Api {
    /// `authority` is `host:port` of a plain-text server.
    pub(super) fn new(authority: &str, encoding: Encoding) -> Self {
        let options = ClientOptions {
            connect_timeout: TIMEOUT,
            ..ClientOptions::default()
        };
        Self {
            client: Client::new(authority, None, options),
            encoding,
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.call(Method::GET, path, None).await
    }

    pub(super) async fn create(&self, path: &str, object: &Value) -> Result<Value, CallError> {
        let body = self.encode(object)?;
        self.call(Method::POST, path, Some(body)).await
    }

    pub(super) async fn replace(&self, path: &str, object: &Value) -> Result<Value, CallError> {
        let body = self.encode(object)?;
        self.call(Method::PUT, path, Some(body)).await
    }

    /// A strategic merge patch (JSON whatever the encoding).
    pub(super) async fn patch(&self, path: &str, patch: &Value) -> Result<Value, CallError> {
        let body = (STRATEGIC_MERGE_PATCH, patch.to_string().into());
        self.call(Method::PATCH, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str, options: &Value) -> Result<Value, CallError> {
        let body = self.encode(options)?;
        self.call(Method::DELETE, path, Some(body)).await
    }

    /// A list, or a page of one.
    pub(super) async fn list(&self, path: &str) -> Result<SplitList, CallError> {
        let list = self.fetch(Method::GET, path, None).await?;
        Ok(list::split(&list.bytes, list.encoding)?)
    }

    /// Opens a watch: the encoding of its frames, and the stream.
    pub(super) async fn watch(&self, path: &str) -> Result<(Encoding, ResponseBody), CallError> {
        let response = self.send(Method::GET, path, None).await?;
        if response.status() != StatusCode::OK {
            return Err(refused(response).await);
        }
        let encoding = encoding_of(response.headers())
            .ok_or_else(|| CallError::Malformed(format!("{path}: a watch in no known encoding")))?;
        Ok((encoding, response.into_body()))
    }

    fn encode(&self, object: &Value) -> Result<(&'static str, Bytes), CallError> {
        let object = Object::from_json_value(object, self.encoding)?;
        Ok((self.encoding.content_type(), object.bytes))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Value, CallError> {
        Ok(self.fetch(method, path, body).await?.to_json_value()?)
    }

    async fn fetch(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Object, CallError> {
        let response = self.send(method, path, body).await?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let (head, bytes) = read(response).await?;
        let encoding = encoding_of(&head.headers)
            .ok_or_else(|| CallError::Malformed(format!("{path}: an answer that is no object")))?;
        Ok(Object { encoding, bytes })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response<ResponseBody>, CallError> {
        let uri = path
            .parse()
            .map_err(|error| CallError::Malformed(format!("{path}: {error}")))?;
        let mut request = Request::new(yurt_transport::empty());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let accept = match self.encoding {
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf,application/json",
            Encoding::Json => "application/json",
        };
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if let Some((content_type, bytes)) = body {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            *request.body_mut() = full(bytes);
        }
        Ok(self.client.send(request, TIMEOUT).await?)
    }
}

fn encoding_of(headers: &HeaderMap) -> Option<Encoding> {
    Encoding::from_content_type(headers.get(header::CONTENT_TYPE)?.to_str().ok()?)
}

async fn refused(response: Response<ResponseBody>) -> CallError {
    let code = response.status().as_u16();
    let (head, bytes) = match read(response).await {
        Ok(read) => read,
        Err(error) => return error,
    };
    let status = encoding_of(&head.headers)
        .and_then(|encoding| Status::from_bytes(&bytes, encoding))
        .map(|status| status.message);
    let message = status.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(&bytes);
        text.trim().chars().take(200).collect()
    });
    CallError::Refused { code, message }
}

/// Reads an answer whole, unpacked.
async fn read(
    response: Response<ResponseBody>,
) -> Result<(http::response::Parts, Bytes), CallError> {
    let (head, body) = response.into_parts();
    let reading = tokio::time::timeout(TIMEOUT, collect(body, MAX_BODY));
    let bytes = match reading.await {
        Err(_) => return Err(CallError::Unreachable("the answer did not end".into())),
        Ok(Err(error)) => return Err(CallError::Unreachable(error.into())),
        Ok(Ok(bytes)) => bytes,
    };
    let packed = head
        .headers
        .get(header::CONTENT_ENCODING)
        .is_some_and(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"gzip"));
    let bytes = if packed { unpack(&bytes)? } else { bytes };
    Ok((head, bytes))
}

fn unpack(packed: &[u8]) -> Result<Bytes, CallError> {
    let mut unpacked = Vec::new();
    // One byte more than allowed tells a body that is too large from one that just fits.
    let bound = MAX_BODY as u64 + 1;
    GzDecoder::new(packed)
        .take(bound)
        .read_to_end(&mut unpacked)
        .map_err(|error| CallError::Malformed(format!("gzip: {error}")))?;
    if unpacked.len() > MAX_BODY {
        return Err(CallError::Malformed("gzip: larger than any object".into()));
    }
    Ok(unpacked.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    #[test]
    fn unpacks_and_bounds() {
        let pack = |bytes: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(unpack(&pack(b"hello")).unwrap(), "hello");
        assert!(unpack(b"no gzip").is_err());
        assert!(unpack(&pack(&vec![0; MAX_BODY + 1])).is_err());
    }

    #[test]
    fn says_what_is_worth_another_try() {
        let refused = |code| CallError::Refused {
            code,
            message: String::new(),
        };
        assert!(refused(503).is_transient() && refused(429).is_transient());
        assert!(!refused(404).is_transient() && !refused(422).is_transient());
        assert_eq!(refused(409).code(), Some(409));
    }
}
