//! Room on the node for what a guest knows of files.
//!
//! virtiofsd has a file open for each that the guest's kernel remembers, which takes 2.8 KB of the pod's memory on the node, most of it the host's kernel's. The guest
//! knows nothing of that: it forgets files when its own memory runs short, of which one takes 1.1 KB. So it is asked to when the pod's control group is nearly full.

use std::future::Future;
use std::time::Duration;

use orlop_proto::agent::v1::ForgetFilesRequest;
use orlop_proto::agent::v1::agent_client::AgentClient;
use tonic::transport::Channel;

use crate::cgroup::Brim;

/// Less than this is not worth what the guest loses by it: some 2,000 files.
const WORTH_IT: u64 = 3 << 20;
/// How long the guest may take to forget.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time from one time to the next.
const PAUSE: Duration = Duration::from_millis(250);

/// Has the guest forget files whenever the brim is reached and they are what the memory is needed for, until the VM's end.
pub(super) async fn keep_room(
    mut brim: Brim,
    mut agent: AgentClient<Channel>,
    end: impl Future<Output = ()>,
) {
    tokio::pin!(end);
    let mut told = false;
    loop {
        tokio::select! {
            () = &mut end => return,
            reached = brim.reached() => if let Err(error) = reached {
                log::warn!("the pod's memory is not watched any more: {error}");
                return;
            }
        }
        let held = brim.held_by_files();
        if held >= WORTH_IT {
            if !std::mem::replace(&mut told, true) {
                log::warn!(
                    "the pod's memory is nearly full, {} MiB of it for open files: from now on its guest is asked to forget those that it does not use",
                    held >> 20
                );
            }
            let call = agent.forget_files(ForgetFilesRequest {});
            match tokio::time::timeout(ANSWER_TIMEOUT, call).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) => log::warn!("the guest does not forget files: {status}"),
                Err(_) => log::warn!("the guest has not forgotten files within {ANSWER_TIMEOUT:?}"),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
