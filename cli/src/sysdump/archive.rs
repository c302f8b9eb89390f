//! The archive as it grows: a file beside the one that it will be, `.NAME.partial`, which gets its name when it is complete. What a
//! program that was killed has left under that name is in nobody's way.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::output::now;

/// An archive that is being written. Dropped before [`Archive::finish`], it leaves nothing.
pub(super) struct Archive {
    path: PathBuf,
    partial: PathBuf,
    /// None once it is finished.
    writer: Option<tar::Builder<GzEncoder<File>>>,
}

impl Archive {
    /// Begins one.
    ///
    /// # Errors
    /// There is one of that name, or none can be made there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::other("it is not the name of a file"))?;
        let partial = path.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        is_free(path)?;
        match fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        // Whoever else is on this machine has no business with it.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        let writer = Some(tar::Builder::new(GzEncoder::new(file, Compression::default())));
        Ok(Self { path: path.to_owned(), partial, writer })
    }

    /// One more file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn append(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Err(io::Error::other("it is finished")) };
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
        header.set_mode(0o600);
        header.set_mtime(now());
        writer.append_data(&mut header, format!("hawser-sysdump/{path}"), bytes)
    }

    /// Ends it, and gives it its name.
    ///
    /// # Errors
    /// It cannot be written, or somebody has put a file of that name there meanwhile.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let done = writer.into_inner().and_then(GzEncoder::finish).and_then(|file| file.sync_all());
        let named =
            done.and_then(|()| is_free(&self.path)).and_then(|()| fs::rename(&self.partial, &self.path));
        named.inspect_err(|_| drop(fs::remove_file(&self.partial)))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            // Nothing in it is of use without its end.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

fn is_free(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file of that name, which stays"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    }

    #[test]
    fn an_archive_has_its_name_when_it_is_whole_and_rests_are_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.tar.gz");
        // Of a program that was killed.
        fs::write(dir.path().join(".d.tar.gz.partial"), "").unwrap();
        let mut archive = Archive::create(&path).unwrap();
        archive.append("a/b.txt", b"text").unwrap();
        assert_eq!(names(dir.path()), [".d.tar.gz.partial"]);
        archive.finish().unwrap();
        assert_eq!(names(dir.path()), ["d.tar.gz"]);
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let paths: Vec<PathBuf> =
            read.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert_eq!(paths, [Path::new("hawser-sysdump/a/b.txt")]);
        // What is there is not replaced, and one that is given up leaves nothing.
        assert_eq!(Archive::create(&path).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        drop(Archive::create(&dir.path().join("e.tar.gz")).unwrap());
        let taken = Archive::create(&dir.path().join("f.tar.gz")).unwrap();
        fs::write(dir.path().join("f.tar.gz"), "theirs").unwrap();
        assert_eq!(taken.finish().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(dir.path()), ["d.tar.gz", "f.tar.gz"]);
    }
}
