//! In which form objects are answered: plain JSON, metadata alone, or a table.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::resource::{Resource, api_version};
use crate::store::{Event, EventKind, ListPage, Stored, frame, partial};
use crate::tables;

/// What the Accept header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Table,
    Partial,
}

/// Picks the first form of the Accept header that can be produced. Protobuf and CBOR cannot, so clients that
/// list them first fall back to JSON.
pub(crate) fn negotiate(accept: Option<&str>) -> Result<Form, ApiError> {
    let accept = accept.unwrap_or_default();
    if accept.trim().is_empty() {
        return Ok(Form::Json);
    }
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let (mut kind, mut group, mut version) = (None, "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", v)) => kind = Some(v),
                Some(("g", v)) => group = v,
                Some(("v", v)) => version = v,
                Some(_) | None => {}
            }
        }
        let json = matches!(media, "application/json" | "*/*" | "application/*");
        match kind {
            None if json => return Ok(Form::Json),
            Some("Table") if json && group == "meta.k8s.io" && version == "v1" => return Ok(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList")
                if json && group == "meta.k8s.io" && version == "v1" =>
            {
                return Ok(Form::Partial);
            }
            Some(_) | None => {}
        }
    }
    Err(ApiError::NotAcceptable { accept: accept.to_owned() })
}

/// A form together with the type it shows.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) form: Form,
    pub(crate) resource: Arc<Resource>,
    /// Version of the request.
    pub(crate) version: String,
    /// Rows of tables carry the whole object.
    pub(crate) include_object: tables::Include,
}

impl View {
    fn is_stored_version(&self) -> bool {
        self.version == self.resource.storage_version
    }

    fn converted(&self, stored: &Stored) -> Value {
        let mut value = stored.value.clone();
        if !self.is_stored_version() {
            value["apiVersion"] = json!(api_version(&self.resource.group, &self.version));
        }
        value
    }

    /// One object.
    pub(crate) fn object(&self, stored: &Stored) -> Bytes {
        match self.form {
            Form::Json if self.is_stored_version() => stored.json().clone(),
            Form::Json => Bytes::from(self.converted(stored).to_string()),
            Form::Partial => stored.partial().clone(),
            Form::Table => Bytes::from(
                self.table(
                    [&stored.value].into_iter(),
                    &json!({
                "resourceVersion": stored.value["metadata"]["resourceVersion"]}),
                )
                .to_string(),
            ),
        }
    }

    /// A list.
    pub(crate) fn list(&self, page: &ListPage) -> Bytes {
        let mut metadata = json!({"resourceVersion": page.rv.to_string()});
        if let Some(token) = &page.token {
            metadata["continue"] = json!(token);
        }
        if let Some(remaining) = page.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        let (kind, version) = match self.form {
            Form::Table => {
                return Bytes::from(self.table(page.items.iter().map(|s| &s.value), &metadata).to_string());
            }
            Form::Json => {
                (format!("{}List", self.resource.kind), api_version(&self.resource.group, &self.version))
            }
            Form::Partial => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1".to_owned()),
        };
        let head = json!({"kind": kind, "apiVersion": version, "metadata": metadata}).to_string();
        let mut out = BytesMut::with_capacity(head.len() + page.items.len() * 1024);
        out.put_slice(head.trim_end_matches('}').as_bytes());
        // The metadata map was closed as well.
        out.put_slice(b"},\"items\":[");
        for (at, stored) in page.items.iter().enumerate() {
            if at > 0 {
                out.put_u8(b',');
            }
            out.put_slice(&self.object(stored));
        }
        out.put_slice(b"]}");
        out.freeze()
    }

    fn table<'v>(&self, objects: impl Iterator<Item = &'v Value>, metadata: &Value) -> Value {
        tables::table(&self.resource, &self.version, objects, metadata, self.include_object)
    }

    /// A line of a watch.
    pub(crate) fn frame(&self, kind: EventKind, stored: &Stored) -> Bytes {
        frame(kind.name(), &self.object(stored))
    }

    /// The line of an event as it is, encoded once for all watches if possible.
    pub(crate) fn shared_frame(&self, event: &Event) -> Bytes {
        match self.form {
            Form::Json if self.is_stored_version() => event.frame().clone(),
            Form::Partial => event.partial_frame().clone(),
            Form::Json | Form::Table => self.frame(event.kind, &event.object),
        }
    }

    /// A bookmark.
    pub(crate) fn bookmark(&self, rv: u64, end: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.kind,
            "apiVersion": api_version(&self.resource.group, &self.version),
            "metadata": {"resourceVersion": rv.to_string(), "creationTimestamp": null},
        });
        if end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Json => object,
            Form::Partial => partial(&object),
            Form::Table => self.table([&object].into_iter(), &json!({"resourceVersion": rv.to_string()})),
        };
        frame("BOOKMARK", object.to_string().as_bytes())
    }
}
