//! Manifests and indexes on their way to the registry.

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use crate::image::Digest;
use crate::registry::download::CONTENT_DIGEST;
use crate::registry::transport::shown;
use crate::registry::upload_body::{Outgoing, UploadBody};
use crate::registry::{Inner, RegistryError};

impl Inner {
    /// Gives the headers of the answer.
    pub(in crate::registry) async fn put_manifest(
        &self,
        bytes: &[u8],
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<HeaderMap, RegistryError> {
        self.put_manifest_if(bytes, media_type, tag, None).await
    }

    /// As [`Self::put_manifest`], under a condition that not every registry minds.
    pub(in crate::registry) async fn put_manifest_if(
        &self,
        bytes: &[u8],
        media_type: &str,
        tag: Option<&str>,
        condition: Option<(HeaderName, HeaderValue)>,
    ) -> Result<HeaderMap, RegistryError> {
        let digest = Digest::of(bytes);
        let reference = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let url = self.url(&format!("manifests/{reference}"));
        let body = UploadBody::whole(&Outgoing::of_bytes(bytes.to_vec()));
        let mut call = self.call("uploading to", Method::PUT, url.clone());
        call.body = Some(&body);
        let media_type = HeaderValue::from_str(media_type);
        call.headers
            .extend(media_type.ok().map(|kind| (CONTENT_TYPE, kind)));
        call.headers.extend(condition);
        let response = self.send(&call).await?;
        let stated = response.headers().get(CONTENT_DIGEST);
        let stated: Option<Digest> = stated.and_then(|text| text.to_str().ok()?.parse().ok());
        match stated.filter(|stated| *stated != digest) {
            Some(found) => Err(RegistryError::Digest {
                url: shown(&url),
                expected: digest,
                found,
            }),
            None => Ok(response.headers().clone()),
        }
    }
}
