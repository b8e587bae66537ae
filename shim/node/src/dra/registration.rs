//! How the kubelet gets to know the driver: it finds the socket that this is served on, and asks.

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::DRIVER;
use crate::api::registration::registration_server;
use crate::api::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

/// What the kubelet made of the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// How often it has said: anew after each of its starts.
    pub times: u64,
    /// Why it does not want it, if so.
    pub refusal: Option<String>,
}

/// The driver's registration.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The path of the socket that the driver is served on.
    pub endpoint: String,
    /// What came of it.
    pub state: watch::Sender<State>,
}

#[tonic::async_trait]
impl registration_server::Registration for Registration {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["v1.DRAPlugin".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.state.send_modify(|state| {
            state.times = state.times.saturating_add(1);
            state.refusal = (!status.plugin_registered).then_some(status.error);
        });
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
