//! The server's REST API, `/api/v1`.

use std::time::Duration;

use ferry_core::{
    api::server::{
        AddHost, AddShare, AddStorageLocation, AttachShare, AuditPage, Candidate, DrainHost, Event, HostView, JobView,
        MigrateMany, MigrateVm, MoveStorage, PlacesView, SetHost, ShareView, StoragePlan, VmView,
    },
    id::JobId,
    pin::Pin,
};
use reqwest::{
    Method, RequestBuilder, Response,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{ClientError, events::Parser, http::Peer};

/// The server answers from its inventory; calls that wait for an agent (adding a host, attaching a share) have shorter
/// deadlines inside the server.
const DEADLINE: Duration = Duration::from_secs(120);
/// The server sends a comment every 15 seconds: after three missing ones the connection is dead.
const EVENT_SILENCE_MAX: Duration = Duration::from_secs(45);

/// Calls one server. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct ServerClient {
    peer: Peer,
}

impl ServerClient {
    /// Calls the server at `base` (`https://ADDRESS:PORT`), identified by `pin`, with the caller's token.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] if address or token cannot be used. Nothing is sent.
    pub fn new(base: &str, pin: Pin, token: &str) -> Result<Self, ClientError> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|_| {
            ClientError::Unusable { what: "token", detail: "it holds characters that no token has".to_owned() }
        })?;
        bearer.set_sensitive(true);
        let headers = HeaderMap::from_iter([(AUTHORIZATION, bearer)]);
        Ok(Self { peer: Peer::new(base, pin, None, headers)? })
    }

    /// All hosts.
    ///
    /// # Errors
    /// As for each method: [`ClientError::Refused`] with the findings, or an error of the connection or the answer.
    pub async fn hosts(&self) -> Result<Vec<HostView>, ClientError> {
        self.get(&["hosts"]).await
    }

    /// Adds a host. Repeated once after a broken connection, with the same idempotency key.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn add_host(&self, body: &AddHost) -> Result<HostView, ClientError> {
        self.post(&["hosts"], body).await
    }

    /// One host, by name or id.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn host(&self, host: &str) -> Result<HostView, ClientError> {
        self.get(&["hosts", host]).await
    }

    /// Removes a host.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn remove_host(&self, host: &str) -> Result<(), ClientError> {
        self.peer.done(self.request(Method::DELETE, &["hosts", host])).await
    }

    /// Sets how many moves a host takes part in at the same time; `None` keeps the present value.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn set_host(&self, host: &str, body: &SetHost) -> Result<HostView, ClientError> {
        self.peer.json(self.request(Method::PATCH, &["hosts", host]).json(body)).await
    }

    /// Moves every running VM off a host and puts it into maintenance; returns once the moves are accepted.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn drain_host(&self, host: &str, body: &DrainHost) -> Result<JobView, ClientError> {
        self.post(&["hosts", host, "drain"], body).await
    }

    /// Ends a host's maintenance.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn resume_host(&self, host: &str) -> Result<HostView, ClientError> {
        self.post(&["hosts", host, "resume"], &()).await
    }

    /// The places that a host offers for files; with a `location` (`/directory` or `\\server.domain\share\directory`),
    /// the content of that directory.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn places(&self, host: &str, location: Option<&str>) -> Result<PlacesView, ClientError> {
        let pairs: Vec<_> = location.into_iter().map(|location| ("location", location)).collect();
        self.peer.json(self.request(Method::GET, &["hosts", host, "places"]).query(&pairs)).await
    }

    /// Adds a storage location to a host; also Ok if the host already has it.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn add_storage_location(&self, host: &str, body: &AddStorageLocation) -> Result<HostView, ClientError> {
        self.peer.json(self.request(Method::PUT, &["hosts", host, "storage-locations"]).json(body)).await
    }

    /// Removes a storage location from a host; the directory and its files stay.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn remove_storage_location(&self, host: &str, location: &str) -> Result<HostView, ClientError> {
        let request = self.request(Method::DELETE, &["hosts", host, "storage-locations"]);
        self.peer.json(request.query(&[("location", location)])).await
    }

    /// All shares.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn shares(&self) -> Result<Vec<ShareView>, ClientError> {
        self.get(&["shares"]).await
    }

    /// Adds a share. Repeated once after a broken connection, with the same idempotency key.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn add_share(&self, body: &AddShare) -> Result<ShareView, ClientError> {
        self.post(&["shares"], body).await
    }

    /// One share, by name or id.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn share(&self, share: &str) -> Result<ShareView, ClientError> {
        self.get(&["shares", share]).await
    }

    /// Removes a share.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn remove_share(&self, share: &str) -> Result<(), ClientError> {
        self.peer.done(self.request(Method::DELETE, &["shares", share])).await
    }

    /// Attaches a share on a host.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn attach_share(&self, share: &str, host: &str, body: &AttachShare) -> Result<ShareView, ClientError> {
        self.peer.json(self.request(Method::PUT, &["shares", share, "hosts", host]).json(body)).await
    }

    /// Detaches a share from a host.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn detach_share(&self, share: &str, host: &str) -> Result<ShareView, ClientError> {
        self.peer.json(self.request(Method::DELETE, &["shares", share, "hosts", host])).await
    }

    /// All VMs.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn vms(&self) -> Result<Vec<VmView>, ClientError> {
        self.get(&["vms"]).await
    }

    /// One VM: a name, a UUID, or `HOST/NAME`.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn vm(&self, vm: &str) -> Result<VmView, ClientError> {
        self.get(&["vms", vm]).await
    }

    /// Starts a VM.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn start_vm(&self, vm: &str) -> Result<VmView, ClientError> {
        self.post(&["vms", vm, "start"], &()).await
    }

    /// Asks a VM's guest to shut down; returns once the request is sent.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn shutdown_vm(&self, vm: &str) -> Result<VmView, ClientError> {
        self.post(&["vms", vm, "shutdown"], &()).await
    }

    /// Judges every host as the destination of a VM.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn candidates(&self, vm: &str) -> Result<Vec<Candidate>, ClientError> {
        self.get(&["vms", vm, "hosts"]).await
    }

    /// Starts a move; returns once it is accepted. Repeated once after a broken connection, with the same idempotency
    /// key.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn migrate(&self, vm: &str, body: &MigrateVm) -> Result<JobView, ClientError> {
        self.post(&["vms", vm, "migrate"], &MigrateVm { dry_run: false, ..body.clone() }).await
    }

    /// Reports what a move would do, and changes nothing.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn try_migrate(&self, vm: &str, body: &MigrateVm) -> Result<Candidate, ClientError> {
        self.post(&["vms", vm, "migrate"], &MigrateVm { dry_run: true, ..body.clone() }).await
    }

    /// Moves disks of a running VM to other files of its host; returns once the move is accepted.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the findings, or an error of the connection or the answer.
    pub async fn move_storage(&self, vm: &str, body: &MoveStorage) -> Result<JobView, ClientError> {
        self.post(&["vms", vm, "storage"], &MoveStorage { dry_run: false, ..body.clone() }).await
    }

    /// Reports what a storage move would do, and changes nothing.
    ///
    /// # Errors
    /// As [`Self::move_storage`].
    pub async fn try_move_storage(&self, vm: &str, body: &MoveStorage) -> Result<StoragePlan, ClientError> {
        self.post(&["vms", vm, "storage"], &MoveStorage { dry_run: true, ..body.clone() }).await
    }

    /// Starts several moves to one host; returns once all are accepted.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn migrate_many(&self, body: &MigrateMany) -> Result<JobView, ClientError> {
        self.post(&["migrations"], body).await
    }

    /// Recent jobs, newest first: those accepted at `since_ms` (Unix milliseconds) or later. Without `limit` the server
    /// chooses the number.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn jobs(&self, since_ms: Option<u64>, limit: Option<u32>) -> Result<Vec<JobView>, ClientError> {
        let since = since_ms.map(|since_ms| ("since_ms", since_ms));
        let limit = limit.map(|limit| ("limit", u64::from(limit)));
        let pairs: Vec<_> = since.into_iter().chain(limit).collect();
        self.peer.json(self.request(Method::GET, &["jobs"]).query(&pairs)).await
    }

    /// Records of ended jobs, oldest first: of those accepted at `since_ms` (Unix milliseconds) or later, and after job
    /// `after`.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn audit(&self, since_ms: Option<u64>, after: Option<JobId>) -> Result<AuditPage, ClientError> {
        let since = since_ms.map(|since_ms| ("since_ms", since_ms));
        let after = after.map(|after| ("after", after.0));
        let pairs: Vec<_> = since.into_iter().chain(after).collect();
        self.peer.json(self.request(Method::GET, &["audit"]).query(&pairs)).await
    }

    /// One job.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.get(&["jobs", &job.to_string()]).await
    }

    /// Requests that a job be cancelled; returns once the request is accepted.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn cancel_job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.post(&["jobs", &job.to_string(), "cancel"], &()).await
    }

    /// Starts another attempt of a job that failed or was cancelled.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn restart_job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.post(&["jobs", &job.to_string(), "restart"], &()).await
    }

    /// Immediately retries the step that a stuck job keeps retrying.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn retry_job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.post(&["jobs", &job.to_string(), "retry"], &()).await
    }

    /// Undoes what a job did, before the switchover.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn undo_job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.post(&["jobs", &job.to_string(), "undo"], &()).await
    }

    /// Accepts the current state of a stuck job: nothing more is done.
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn dismiss_job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.post(&["jobs", &job.to_string(), "dismiss"], &()).await
    }

    /// Events from now on, or after the event `last` if the server still has that; otherwise the first event is
    /// [`Event::Reset`].
    ///
    /// # Errors
    /// As [`Self::hosts`].
    pub async fn events(&self, last: Option<u64>) -> Result<EventStream, ClientError> {
        let mut request = self.peer.endless(Method::GET, &["api", "v1", "events"]);
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last.to_string());
        }
        let opened = tokio::time::timeout(EVENT_SILENCE_MAX, self.peer.send(request)).await;
        let response = opened.map_err(|silence| unreachable(&self.peer, silence))??;
        Ok(EventStream { response, parser: Parser::default(), last, peer: self.peer.clone() })
    }

    fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.peer.request(method, &[&["api", "v1"], segments].concat(), DEADLINE)
    }

    async fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T, ClientError> {
        self.peer.json(self.request(Method::GET, segments)).await
    }

    async fn post<T: DeserializeOwned>(&self, segments: &[&str], body: &impl Serialize) -> Result<T, ClientError> {
        let key = Uuid::new_v4().to_string();
        let send = || {
            let request = self.request(Method::POST, segments).header("Idempotency-Key", &key);
            self.peer.json(request.json(body))
        };
        match send().await {
            // The server may have executed the call: with the same key it returns the same answer again.
            Err(error) if error.may_have_been_sent() => send().await,
            answer => answer,
        }
    }
}

fn unreachable(peer: &Peer, source: impl std::error::Error + Send + Sync + 'static) -> ClientError {
    ClientError::Unreachable { peer: peer.name(), source: Box::new(source) }
}

/// Events in order of arrival. After an error, open a new stream with [`EventStream::last`].
#[derive(Debug)]
pub struct EventStream {
    response: Response,
    parser: Parser,
    last: Option<u64>,
    peer: Peer,
}

impl EventStream {
    /// The next event; `None` if the server ended the stream.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if the connection broke or was silent for too long.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(received) = self.parser.pop() {
                self.last = received.id.and_then(|id| id.parse().ok()).or(self.last);
                let event = serde_json::from_str(&received.data);
                return event.map(Some).map_err(|error| self.peer.not_understood(error.to_string()));
            }
            let chunk = tokio::time::timeout(EVENT_SILENCE_MAX, self.response.chunk()).await;
            let chunk = chunk.map_err(|silence| unreachable(&self.peer, silence))?;
            let Some(bytes) = chunk.map_err(|error| self.peer.fault(error))? else {
                return Ok(None);
            };
            self.parser.push(&bytes).map_err(|_| self.peer.not_understood("an event is too long".to_owned()))?;
        }
    }

    /// The number of the last event that was returned.
    pub fn last(&self) -> Option<u64> {
        self.last
    }
}
