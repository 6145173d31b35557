//! Stored bytes that change or vanish behind the store's back. These cases pass where the harness cannot do that.

use super::steps::*;

/// Verification names the artifact, and reading what is sound still works.
pub async fn changed_bytes_do_not_verify(subject: Subject) {
    let store = subject.store();
    let bytes = bytes(SEVERAL, 1);
    let digest = put(&*store, &bytes).await.digest();
    let at = 3 * PIECE as u64 + 5;
    if !subject.damage(&digest, at).await {
        return;
    }
    match store.verify(&digest).await {
        Err(Error::Corrupt { digest: named, .. }) => assert_eq!(named, digest),
        other => panic!("damage is found, instead of {other:?}"),
    }
    // The manifest is checked by itself and still tells which pieces are sound.
    let manifest = store.require_manifest(&digest).await.expect("the manifest is sound");
    for (index, sound) in [(2, true), (3, false), (4, true)] {
        let range = manifest.piece_range(index).expect("a piece");
        let Ok(piece) = store.read_all(&digest, range).await else {
            assert!(!sound, "a sound piece can be read");
            continue;
        };
        assert_eq!(manifest.verify_piece(index, &piece), sound, "piece {index}");
    }
}

/// An artifact without its bytes does not exist, and is neither read nor taken for empty.
pub async fn lost_bytes_are_noticed(subject: Subject) {
    let store = subject.store();
    let digest = put(&*store, &bytes(SEVERAL, 1)).await.digest();
    if !subject.lose(&digest).await {
        return;
    }
    for store in [subject.store(), subject.reopen().await] {
        assert!(!store.exists(&digest).await.expect("exists"), "it does not exist");
        match store.read_all(&digest, 0..10).await {
            Err(Error::Corrupt { .. } | Error::NotFound { .. }) => {}
            other => panic!("the loss is found, instead of {other:?}"),
        }
    }
    put(&*store, &bytes(SEVERAL, 1)).await;
    assert_there(&*store, &bytes(SEVERAL, 1)).await;
}
