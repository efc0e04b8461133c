//! Who may run beside whom. The tests of one program run side by side; those that measure time or memory would measure
//! their neighbours, so they have the machine to themselves.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static FLOOR: RwLock<()> = RwLock::const_new(());

/// Waits until nobody measures. Held to the end of the test.
pub async fn shared() -> RwLockReadGuard<'static, ()> {
    FLOOR.read().await
}

/// Waits until nothing else runs. Held to the end of the test.
pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    FLOOR.write().await
}
