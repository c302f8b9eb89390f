//! A container image as a file, made without any container tool: an OCI image layout (image-spec 1.1) that is a
//! `docker save` archive, too, so that docker, podman, buildah and containerd all take it.
//!
//! The same files give the same bytes: no time, no owner, no order but that of names.

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

#[cfg(test)]
mod tests;

/// A file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFile {
    /// Where, beneath the image's root, without a leading slash.
    pub path: String,
    /// Its mode, such as 0o755.
    pub mode: u32,
    /// Its content.
    pub content: Vec<u8>,
}

/// What an image is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its whole name with registry and tag, such as `registry.example/hawser:0.1.0`.
    pub reference: String,
    /// As OCI calls it: `amd64` or `arm64`.
    pub architecture: String,
    /// Of the software.
    pub version: String,
    /// Of all of it together, an SPDX expression.
    pub licenses: String,
    /// The program that runs when nobody names one.
    pub entrypoint: Vec<String>,
    /// Variables of every process, `NAME=value`.
    pub environment: Vec<String>,
    /// All files.
    pub files: Vec<ImageFile>,
}

/// An image as one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The tar file.
    pub bytes: Vec<u8>,
    /// Digest of its manifest: what a registry would know it by.
    pub digest: String,
    /// Size of the compressed layer in bytes: what a node downloads.
    pub compressed: usize,
}

/// A blob with its digest.
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: sha256(&bytes), bytes }
    }

    fn of_json(value: &Value) -> Self {
        // Keys of serde_json's maps are sorted.
        Self::new(value.to_string().into_bytes())
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Image {
    /// Writes it.
    ///
    /// # Errors
    /// The reference has no tag, or a path is none that a tar file can hold.
    pub fn archive(&self) -> Result<Archive> {
        let (_, tag) = self
            .reference
            .rsplit_once(':')
            .filter(|(name, tag)| !name.is_empty() && !tag.is_empty() && !tag.contains('/'))
            .with_context(|| format!("image name {:?} has no tag; write it as name:tag", self.reference))?;
        let layer = tar(&self.files)?;
        let diff = sha256(&layer);
        let layer = Blob::new(gzip(&layer)?);
        let config = Blob::of_json(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {
                "User": "0:0",
                "Entrypoint": self.entrypoint,
                "Env": self.environment,
                "Labels": {
                    "org.opencontainers.image.title": "hawser",
                    "org.opencontainers.image.version": self.version,
                    "org.opencontainers.image.licenses": self.licenses,
                },
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff}")]},
            "history": [{"created_by": "cargo xtask image"}],
        }));
        let manifest = Blob::of_json(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
        }));
        let mut described = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
        described["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        described["annotations"] = json!({
            // containerd's name for it; the tag alone is what the specification has.
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [described],
        });
        let for_docker = json!([
            {"Config": config.path(), "RepoTags": [self.reference], "Layers": [layer.path()]},
        ]);
        let (digest, compressed) = (format!("sha256:{}", manifest.digest), layer.bytes.len());
        let file = |path: String, content: Vec<u8>| ImageFile { path, mode: 0o644, content };
        let mut files = vec![
            file("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            file("index.json".into(), index.to_string().into_bytes()),
            file("manifest.json".into(), for_docker.to_string().into_bytes()),
        ];
        files.extend([config, manifest, layer].map(|blob| file(blob.path(), blob.bytes)));
        Ok(Archive { bytes: tar(&files)?, digest, compressed })
    }
}

/// A tar file with these and the directories that they need, all root's and of 1970.
fn tar(files: &[ImageFile]) -> Result<Vec<u8>> {
    let mut sorted: Vec<&ImageFile> = files.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut directories = std::collections::BTreeSet::new();
    let mut builder = tar::Builder::new(Vec::new());
    builder.mode(tar::HeaderMode::Deterministic);
    let header = |kind, mode, size| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header
    };
    let mut last = None;
    for file in sorted {
        ensure!(
            !file.path.starts_with('/') && !file.path.split('/').any(|part| matches!(part, "" | "." | "..")),
            "{:?} is no path beneath an image's root",
            file.path
        );
        ensure!(last != Some(&file.path), "{} is in the image twice", file.path);
        last = Some(&file.path);
        let ancestors = file.path.match_indices('/').map(|(at, _)| &file.path[..=at]);
        for directory in ancestors {
            if directories.insert(directory) {
                let mut header = header(tar::EntryType::Directory, 0o755, 0);
                builder.append_data(&mut header, directory, std::io::empty())?;
            }
        }
        let size = u64::try_from(file.content.len()).context("a file longer than 2^64 bytes")?;
        let mut header = header(tar::EntryType::Regular, file.mode, size);
        builder
            .append_data(&mut header, &file.path, file.content.as_slice())
            .with_context(|| format!("cannot write {} into a tar file", file.path))?;
    }
    Ok(builder.into_inner()?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}
