//! The pod's sandbox where containerd makes it by the sandbox interface (`sandboxer = "shim"`) and not as a task of its own.
//!
//! It stands for the pod as the task does, and is held where that is held, so that what asks for a pod's sandbox need not know by which of
//! the two it was made. The VM boots with the first container here as well: `StartSandbox` only says that containers may come.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, SandboxMetricsResponse, SandboxStatusResponse, StartSandboxResponse,
    WaitSandboxResponse,
};

use super::Tasks;
use super::container::Container;
use super::process::{Exit, Phase};
use crate::bundle;
use crate::cgroup::Cgroup;
use crate::codes::{Failure, Outcome};
use crate::logging::phase;
use crate::sandbox::etc;
use crate::spec::{PodConfig, PodFile, PodSpec};

/// What CRI calls a sandbox that takes containers.
const READY: &str = "SANDBOX_READY";
/// And one that does not.
const NOT_READY: &str = "SANDBOX_NOTREADY";
/// How a sandbox ends that is asked to.
const STOPPED: u32 = 0;

impl Tasks {
    /// Makes the sandbox.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` when there is one, `INVALID_ARGUMENT` for a pod that no guest can be.
    pub async fn create_sandbox(&self, request: CreateSandboxRequest) -> Outcome<()> {
        let id = self.pod.id.as_str();
        let exists = || Failure::already_exists(format!("sandbox {id} exists: a shim has one"));
        let reservation = self.registry.reserve(id, false).ok_or_else(exists)?;
        if request.sandbox_id != id {
            let what = format!("this is the shim of sandbox {id}");
            return Err(Failure::invalid(what));
        }
        let invalid = |error: &dyn std::error::Error| Failure::invalid(error.to_string());
        let given = request.options.as_ref().map_or(Ok(None), PodConfig::of);
        let given = given.map_err(|error| invalid(&error))?;
        let bundle = PathBuf::from(&request.bundle_path);
        // containerd writes none, and others may.
        let spec = bundle::spec(&bundle).ok();
        let of_spec = spec.as_ref().and_then(|spec| spec.annotations().clone());
        let mut annotations = of_spec.unwrap_or_default();
        annotations.extend(request.annotations);
        let config = given.clone().unwrap_or_default();
        annotations.extend(config.annotations());
        let network = config.network(&request.netns_path);
        self.set_network(network.map_err(|error| invalid(&error))?)?;
        self.set_annotations(&annotations)?;
        if let Some(path) = config.cgroups_path(id) {
            self.enter_cgroup(path).await?;
        }
        self.pod.set_spec(match given {
            Some(config) => config.shared(self.write_etc(config.clone()).await?),
            None => spec.as_ref().map(PodSpec::of_sandbox).unwrap_or_default(),
        });
        reservation.fill(Arc::new(Container::api_sandbox(id, bundle)));
        phase("sandbox-created", id);
        Ok(())
    }

    /// Writes the files that containerd leaves to whoever makes sandboxes.
    async fn write_etc(&self, config: PodConfig) -> Outcome<Vec<PodFile>> {
        let directory = self.pod.directory.clone();
        let writing = tokio::task::spawn_blocking(move || etc::write(&directory, &config));
        match writing.await {
            Ok(Ok(files)) => Ok(files),
            Ok(Err(error)) => Err(Failure::internal(format!(
                "cannot write the pod's files: {error}"
            ))),
            Err(error) => Err(Failure::internal(error.to_string())),
        }
    }

    /// What the pod takes counts where its sandbox's cgroup is. A pod whose use is not counted there is still a pod.
    async fn enter_cgroup(&self, path: PathBuf) -> Outcome<()> {
        let entering = tokio::task::spawn_blocking(move || Cgroup::enter(&path));
        match entering.await {
            Ok(Ok(Some((cgroup, home)))) => {
                self.pod.set_cgroup(cgroup, home);
                // So that `delete` finds it.
                let noted = self.pod.begin();
                noted.map_err(|error| Failure::internal(format!("the pod's state: {error}")))?;
            }
            Ok(Err(error)) => log::warn!("what the pod takes counts elsewhere: {error}"),
            Ok(Ok(None)) | Err(_) => {}
        }
        Ok(())
    }

    /// Has the sandbox take containers.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` for one that was not made, or was started before.
    pub async fn start_sandbox(&self) -> Outcome<StartSandboxResponse> {
        let sandbox = self.registry.sandbox().ok_or_else(|| {
            let what = format!("sandbox {} was not created", self.pod.id);
            Failure::precondition(what)
        })?;
        let _transition = sandbox.init.transition.lock().await;
        if sandbox.init.phase() != Phase::Created {
            let what = format!("sandbox {} was started before", self.pod.id);
            return Err(Failure::precondition(what));
        }
        sandbox.init.started();
        phase("sandbox-started", &self.pod.id);
        Ok(StartSandboxResponse {
            pid: sandbox.pid(),
            created_at: MessageField::some(Timestamp::from(sandbox.created)),
            ..StartSandboxResponse::default()
        })
    }

    /// Ends the VM and whatever is in it. One that has ended stays so.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn stop_sandbox(&self) -> Outcome<()> {
        let sandbox = self.the_sandbox()?;
        self.pod.close().await;
        self.ended(&sandbox, &sandbox.init, Exit::now(STOPPED))
            .await;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn wait_sandbox(&self) -> Outcome<WaitSandboxResponse> {
        let sandbox = self.the_sandbox()?;
        let exit = sandbox.init.wait().await;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: exit.timestamp(),
            ..WaitSandboxResponse::default()
        })
    }

    /// What there is to say of it: in `info`, which people see, as much as the CRI's own sandboxes say.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn sandbox_status(&self) -> Outcome<SandboxStatusResponse> {
        let sandbox = self.the_sandbox()?;
        let phase = sandbox.init.phase();
        let state = if phase == Phase::Running {
            READY
        } else {
            NOT_READY
        };
        let exit = sandbox.init.exit();
        Ok(SandboxStatusResponse {
            sandbox_id: sandbox.id.clone(),
            pid: sandbox.pid(),
            state: state.to_owned(),
            info: HashMap::from([
                ("pid".to_owned(), sandbox.pid().to_string()),
                ("state".to_owned(), state.to_owned()),
            ]),
            created_at: MessageField::some(Timestamp::from(sandbox.created)),
            exited_at: exit.map_or_else(MessageField::none, |exit| exit.timestamp()),
            ..SandboxStatusResponse::default()
        })
    }

    /// What it takes by itself, which is nothing: its containers take it, each of which is asked by itself.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub async fn sandbox_metrics(&self) -> Outcome<SandboxMetricsResponse> {
        let sandbox = self.the_sandbox()?;
        let stats = self.stats(&sandbox.id).await?;
        let mut response = SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = MessageField::some(Timestamp::from(SystemTime::now()));
        metrics.id.clone_from(&sandbox.id);
        metrics.data = stats.stats;
        Ok(response)
    }

    /// Ends the sandbox, if it has not ended, and the shim.
    pub async fn shutdown_sandbox(&self) {
        if let Ok(sandbox) = self.the_sandbox() {
            if self.stop_sandbox().await.is_ok() {
                self.registry.remove(&sandbox.id);
            }
            phase("sandbox-deleted", &sandbox.id);
        }
        self.exit.notify_one();
    }

    /// The sandbox.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn the_sandbox(&self) -> Outcome<Arc<Container>> {
        let sandbox = self.registry.sandbox();
        sandbox.ok_or_else(|| Failure::not_found(format!("no sandbox {}", self.pod.id)))
    }

    /// Whether a container whose spec names no pod is of this one: whoever makes sandboxes by their interface knows whom it asks.
    pub(super) fn takes_in(&self, id: &str) -> bool {
        let by_api = |sandbox: Arc<Container>| sandbox.is_api_sandbox();
        id != self.pod.id && self.registry.sandbox().is_some_and(by_api)
    }
}
