use super::*;

/// A fetch that was cancelled does not end the reading of what it brought.
#[test]
fn what_is_fetched_anew_meanwhile_is_not_taken_for_what_was_verified() {
    let data = tempfile::tempdir().unwrap();
    let disk = LocalDisk::open(data.path(), LocalDiskSettings::default()).unwrap();
    let (inner, manifest) = (&disk.inner, Manifest::of(b"good bytes"));
    let part = inner.part(&manifest.digest());
    fs::write(&part, b"good bytes").unwrap();
    let file = inner.verified(&manifest).unwrap();
    fs::remove_file(&part).unwrap();
    fs::write(&part, [0; 10]).unwrap();
    assert!(matches!(inner.name(&file, &manifest), Err(Error::Missing { .. })));
    assert!(!inner.blob(&manifest.digest()).exists());

    fs::write(&part, b"good bytes").unwrap();
    inner.stage(&manifest).unwrap();
    assert_eq!(fs::read(inner.blob(&manifest.digest())).unwrap(), b"good bytes");
    assert_eq!(fs::metadata(&part).unwrap().ino(), fs::metadata(inner.blob(&manifest.digest())).unwrap().ino());
}
