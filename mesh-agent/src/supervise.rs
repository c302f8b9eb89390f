//! Threads and tasks that run for ever beside the agent's own tasks, and that nobody would miss: without them it would go on,
//! alive and ready, and do half of its work.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use anyhow::anyhow;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Runs work that does not end in a thread of its own. The future resolves when it has ended all the same, to why.
///
/// # Errors
/// There is no thread to be had.
pub(crate) fn thread(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<BoxFuture<'static, anyhow::Error>> {
    let (tell, told) = oneshot::channel();
    let body = move || {
        // A panic would end this thread and nothing else. What it left half done nobody looks at: the agent ends.
        let panic = std::panic::catch_unwind(AssertUnwindSafe(work)).err();
        // Nobody listens when the agent itself has ended.
        drop(tell.send(panic.map(|panic| words(&*panic))));
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(body)?;
    let ended = async move {
        match told.await {
            Ok(Some(panic)) => anyhow!("thread {name} panicked: {panic}"),
            Ok(None) | Err(_) => anyhow!("thread {name} ended"),
        }
    };
    Ok(ended.boxed())
}

/// Waits for the end of a task that has none, and says why it came.
pub(crate) async fn task(name: &'static str, task: JoinHandle<()>) -> anyhow::Error {
    match task.await {
        Ok(()) => anyhow!("{name} ended"),
        Err(error) => anyhow::Error::new(error).context(format!("{name} ended")),
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a word".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernel::Kernel;

    #[tokio::test]
    async fn a_thread_that_panics_is_named_with_what_it_said() {
        let slot = 7;
        let ended = thread("policy", move || panic!("no slot {slot}")).expect("a thread");
        assert_eq!(ended.await.to_string(), "thread policy panicked: no slot 7");
        let ended = thread("flows", || panic!("no ring")).expect("a thread");
        assert_eq!(ended.await.to_string(), "thread flows panicked: no ring");
    }

    #[tokio::test]
    async fn of_a_thread_that_runs_nothing_is_heard_until_it_ends() {
        let (go_on, waits) = std::sync::mpsc::channel::<()>();
        let work = move || {
            let _over = waits.recv();
        };
        let mut ended = thread("policy", work).expect("a thread");
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut ended).await.is_err(), "it still runs");
        drop(go_on);
        assert_eq!(ended.await.to_string(), "thread policy ended");
    }

    #[tokio::test]
    async fn a_netlink_connection_that_ends_is_heard_of() {
        let (kernel, connection) = Kernel::supervised().expect("a netlink socket");
        let mut ended = task("netlink connection", connection).boxed();
        kernel.links().await.expect("links");
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut ended).await.is_err(), "it still runs");
        // Its socket cannot be broken from here, but a connection that nobody can use any more ends, too.
        drop(kernel);
        assert_eq!(ended.await.to_string(), "netlink connection ended");
        let panicked = tokio::spawn(async { Vec::<()>::new().pop().expect("a message that can be read") });
        let why = format!("{:#}", task("netlink connection", panicked).await);
        assert!(
            why.starts_with("netlink connection ended: ") && why.contains("a message that can be read"),
            "{why}"
        );
    }
}
