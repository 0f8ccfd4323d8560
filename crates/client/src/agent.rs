//! An agent's control API, `/v1`. Only the server that the agent is enrolled with may call it.

use std::time::Duration;

use ferry_core::{
    api::agent::{
        AttachRequest, CheckOffline, ConfirmRequest, ConfirmStorage, DestinationReady, DiskArrival, DiskSize,
        EPOCH_HEADER, EnrolRequest, FileSize, LockStep, MigrationReport, Observation, OfflineReady, OfflineReport,
        Power, PowerRequest, PrepareDestination, PrepareSource, PrepareStorage, ReceiveOffline, SendOffline,
        ShareToken, SourceReady, StorageReport,
    },
    host::HostFacts,
    id::{Generation, Incarnation, JobId, ShareId, VmId},
    location::Location,
    pin::Pin,
    place::{DirectoryListing, OfferedPlace},
    share::AttachedShare,
    units::ByteCount,
};
use ferry_trust::KeyPair;
use reqwest::{
    Method, RequestBuilder,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use crate::{ClientError, http::Peer};

/// Most calls change or read something on the host itself.
const DEADLINE: Duration = Duration::from_secs(30);
/// Mounting a share asks a file server that may be slow to refuse.
const ATTACH_DEADLINE: Duration = Duration::from_secs(90);
/// New files are made on a file server that may be slow; copies end when libvirt has ended them.
const STORAGE_DEADLINE: Duration = Duration::from_secs(90);
/// Browsing asks file systems and file servers, some of which are slow or dead: the agent's own deadlines are shorter.
const BROWSE_DEADLINE: Duration = Duration::from_secs(60);
/// What a long poll may take beyond its own wait.
const POLL_GRACE: Duration = Duration::from_secs(5);
/// An abort waits until libvirt's migrate call has ended.
const ABORT_DEADLINE: Duration = Duration::from_secs(75);

/// Calls one agent. Cheap to clone: clones share their connections.
#[derive(Clone, Debug)]
pub struct AgentClient {
    peer: Peer,
}

/// One attempt of a job, as agents know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// Older generations are refused.
    pub generation: Generation,
}

impl AgentClient {
    /// Calls the agent at `address` (`ADDRESS:PORT`), known by `pin`; `me` is the server's key, which the agent pins.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] when the address cannot be used. Nothing is sent.
    pub fn new(address: &str, pin: Pin, me: &KeyPair) -> Result<Self, ClientError> {
        Self::with_headers(address, pin, me, HeaderMap::new())
    }

    /// As [`Self::new`]; each request says which life of the server asks.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn in_epoch(address: &str, pin: Pin, me: &KeyPair, epoch: u64) -> Result<Self, ClientError> {
        let header = (HeaderName::from_static(EPOCH_HEADER), HeaderValue::from(epoch));
        Self::with_headers(address, pin, me, HeaderMap::from_iter([header]))
    }

    fn with_headers(address: &str, pin: Pin, me: &KeyPair, headers: HeaderMap) -> Result<Self, ClientError> {
        Ok(Self { peer: Peer::new(&format!("https://{address}"), pin, Some(me), headers)? })
    }

    /// Shows the enrolment secret: from then on the agent obeys `me`.
    ///
    /// # Errors
    /// As for each method: [`ClientError::Refused`] with the findings, or no (sensible) answer.
    pub async fn enrol(&self, body: &EnrolRequest) -> Result<HostFacts, ClientError> {
        self.peer.json(self.call(Method::POST, &["enrol"]).json(body)).await
    }

    /// The host, asked now.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn host(&self) -> Result<HostFacts, ClientError> {
        self.peer.json(self.call(Method::GET, &["host"])).await
    }

    /// What the agent sees, when it is newer than `known` or after `wait`.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn observe(
        &self,
        known: Option<(Incarnation, Generation)>,
        wait: Duration,
    ) -> Result<Observation, ClientError> {
        let request = self.peer.request(Method::GET, &["v1", "observe"], wait + POLL_GRACE);
        let mut pairs = vec![("wait_ms", wait.as_millis().to_string())];
        if let Some((incarnation, generation)) = known {
            pairs.extend([("incarnation", incarnation.to_string()), ("generation", generation.to_string())]);
        }
        self.peer.json(request.query(&pairs)).await
    }

    /// What the agent sees when it looks now. The answer is no older than the question.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn look(&self) -> Result<Observation, ClientError> {
        let request = self.peer.request(Method::GET, &["v1", "observe"], DEADLINE);
        self.peer.json(request.query(&[("fresh", "true")])).await
    }

    /// Attaches a share; repeating it is safe.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn attach_share(&self, share: ShareId, body: &AttachRequest) -> Result<AttachedShare, ClientError> {
        let request = self.peer.request(Method::PUT, &["v1", "shares", &share.to_string()], ATTACH_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Detaches a share; Ok also if it was not attached.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn detach_share(&self, share: ShareId) -> Result<(), ClientError> {
        let segments = ["v1", "shares", &share.to_string()];
        self.peer.done(self.peer.request(Method::DELETE, &segments, ATTACH_DEADLINE)).await
    }

    /// Writes a token file on a share.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn write_token(&self, share: ShareId, name: &str, token: &ShareToken) -> Result<(), ClientError> {
        self.peer.done(self.token(Method::PUT, share, name).json(token)).await
    }

    /// Reads a token file on a share.
    ///
    /// # Errors
    /// As [`Self::enrol`]; a problem with status 404 when there is no such file.
    pub async fn read_token(&self, share: ShareId, name: &str) -> Result<ShareToken, ClientError> {
        self.peer.json(self.token(Method::GET, share, name)).await
    }

    /// Removes a token file from a share; Ok also if there is none.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn remove_token(&self, share: ShareId, name: &str) -> Result<(), ClientError> {
        self.peer.done(self.token(Method::DELETE, share, name)).await
    }

    /// Does one step of a trial of QEMU's locks on a share.
    ///
    /// # Errors
    /// As [`Self::enrol`]; a problem with the finding `share.locks` when they do not work.
    pub async fn try_locks(&self, share: ShareId, name: &str, step: LockStep) -> Result<(), ClientError> {
        self.peer.done(self.locks(Method::PUT, share, name).json(&step)).await
    }

    /// Ends a trial of QEMU's locks, whatever came of it; Ok also if there is none.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn end_lock_trial(&self, share: ShareId, name: &str) -> Result<(), ClientError> {
        self.peer.done(self.locks(Method::DELETE, share, name)).await
    }

    /// What the host offers for files: its storage roots and its shares.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn places(&self) -> Result<Vec<OfferedPlace>, ClientError> {
        self.peer.json(self.peer.request(Method::GET, &["v1", "places"], BROWSE_DEADLINE)).await
    }

    /// What is in a directory.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn directory(&self, location: &Location) -> Result<DirectoryListing, ClientError> {
        self.peer.json(self.peer.request(Method::GET, &["v1", "directory"], BROWSE_DEADLINE).query(location)).await
    }

    /// Makes sure that a directory can hold files of VMs; nothing stays of the try.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn check_directory(&self, location: &Location) -> Result<(), ClientError> {
        let request = self.peer.request(Method::PUT, &["v1", "directory", "check"], BROWSE_DEADLINE);
        self.peer.done(request.json(location)).await
    }

    /// Starts a VM or asks its guest to shut down.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn power(&self, vm: VmId, power: Power) -> Result<(), ClientError> {
        let request = self.call(Method::PUT, &["vms", &vm.to_string(), "power"]);
        self.peer.done(request.json(&PowerRequest { power })).await
    }

    /// Sizes of the disks of a running VM that are files which it writes.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn disks(&self, vm: VmId) -> Result<Vec<DiskSize>, ClientError> {
        self.peer.json(self.call(Method::GET, &["vms", &vm.to_string(), "disks"])).await
    }

    /// Whether new files for disks that come along can be made on the host. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::enrol`]; a problem says what stands against it.
    pub async fn check_arrivals(&self, vm: VmId, disks: &[DiskArrival]) -> Result<(), ClientError> {
        let path = ["v1", "vms", &vm.to_string(), "arrivals", "check"];
        let request = self.peer.request(Method::PUT, &path, BROWSE_DEADLINE);
        self.peer.done(request.json(disks)).await
    }

    /// Makes the destination ready: its carrier listens.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn prepare_destination(
        &self,
        attempt: Attempt,
        body: &PrepareDestination,
    ) -> Result<DestinationReady, ClientError> {
        let request = self.migration(Method::PUT, attempt, Some("destination")).timeout(STORAGE_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Makes the source ready: its carrier is connected, the VM held.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn prepare_source(&self, attempt: Attempt, body: &PrepareSource) -> Result<SourceReady, ClientError> {
        let request = self.migration(Method::PUT, attempt, Some("source")).timeout(STORAGE_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Starts the move at the source; Ok when it was started.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn perform(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        self.put_migration(attempt, "perform").await
    }

    /// How this end stands, when its sequence is beyond `after` or `wait` is over.
    ///
    /// # Errors
    /// As [`Self::enrol`]; a problem with status 404 when the agent knows nothing of the attempt.
    pub async fn report(&self, attempt: Attempt, after: u64, wait: Duration) -> Result<MigrationReport, ClientError> {
        let request = self.migration(Method::GET, attempt, None).timeout(wait + POLL_GRACE);
        let pairs = [("after", after.to_string()), ("wait_ms", wait.as_millis().to_string())];
        self.peer.json(request.query(&pairs)).await
    }

    /// Resumes the VM at the destination, after the verdict said that it is the destination's.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn resume(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        self.put_migration(attempt, "resume").await
    }

    /// Ends the process that libvirt left of the VM at the source, after the verdict said that it is the destination's.
    ///
    /// # Errors
    /// As [`Self::enrol`]; refused while the VM is there in another way than left paused.
    pub async fn end_copy(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        self.put_migration(attempt, "end-copy").await
    }

    /// Ends the move before the point of no return; refused with `job.past-pivot` after it.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn abort(&self, attempt: Attempt) -> Result<MigrationReport, ClientError> {
        self.peer.json(self.migration(Method::PUT, attempt, Some("abort")).timeout(ABORT_DEADLINE)).await
    }

    /// Ends a successful move on this host: definition and autostart.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn confirm(&self, attempt: Attempt, body: &ConfirmRequest) -> Result<MigrationReport, ClientError> {
        let request = self.migration(Method::PUT, attempt, Some("confirm")).timeout(STORAGE_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Cleans everything of the attempt.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn release(&self, attempt: Attempt) -> Result<(), ClientError> {
        self.peer.done(self.migration(Method::DELETE, attempt, None).timeout(STORAGE_DEADLINE)).await
    }

    /// What each disk of a storage move takes now; nothing is changed.
    ///
    /// # Errors
    /// As [`Self::enrol`]: what stands against it.
    pub async fn check_storage(&self, body: &PrepareStorage) -> Result<Vec<ByteCount>, ClientError> {
        self.peer.json(self.call(Method::PUT, &["storage-moves", "check"]).json(body)).await
    }

    /// Makes the new files of a storage move.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn prepare_storage(&self, attempt: Attempt, body: &PrepareStorage) -> Result<StorageReport, ClientError> {
        self.peer.json(self.storage(Method::PUT, attempt, None).timeout(STORAGE_DEADLINE).json(body)).await
    }

    /// Begins to copy, or goes on.
    ///
    /// # Errors
    /// As [`Self::enrol`]; a problem with status 404 when the agent knows nothing of the attempt.
    pub async fn perform_storage(&self, attempt: Attempt) -> Result<StorageReport, ClientError> {
        self.peer.json(self.storage(Method::PUT, attempt, Some("perform"))).await
    }

    /// How a storage move stands, when its sequence is beyond `after` or `wait` is over.
    ///
    /// # Errors
    /// As [`Self::perform_storage`].
    pub async fn report_storage(
        &self,
        attempt: Attempt,
        after: u64,
        wait: Duration,
    ) -> Result<StorageReport, ClientError> {
        let request = self.storage(Method::GET, attempt, None).timeout(wait + POLL_GRACE);
        let pairs = [("after", after.to_string()), ("wait_ms", wait.as_millis().to_string())];
        self.peer.json(request.query(&pairs)).await
    }

    /// Ends a storage move before the first disk is switched over; refused with `job.past-pivot` after it.
    ///
    /// # Errors
    /// As [`Self::perform_storage`].
    pub async fn abort_storage(&self, attempt: Attempt) -> Result<StorageReport, ClientError> {
        self.peer.json(self.storage(Method::PUT, attempt, Some("abort")).timeout(STORAGE_DEADLINE)).await
    }

    /// Removes the old files.
    ///
    /// # Errors
    /// As [`Self::perform_storage`].
    pub async fn confirm_storage(&self, attempt: Attempt, body: &ConfirmStorage) -> Result<StorageReport, ClientError> {
        let request = self.storage(Method::PUT, attempt, Some("confirm")).timeout(STORAGE_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Cleans everything of the attempt; new files that no VM uses are removed.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn release_storage(&self, attempt: Attempt) -> Result<(), ClientError> {
        self.peer.done(self.storage(Method::DELETE, attempt, None).timeout(STORAGE_DEADLINE)).await
    }

    /// Sizes of these files of a VM that is shut off, by their devices. UEFI variables that are not there yet are left out.
    ///
    /// # Errors
    /// As [`Self::enrol`]; `vm.running`.
    pub async fn files(&self, vm: VmId, only: &[&str]) -> Result<Vec<FileSize>, ClientError> {
        let request = self.call(Method::GET, &["vms", &vm.to_string(), "files"]);
        self.peer.json(request.query(&[("only", only.join(","))])).await
    }

    /// Whether files of a VM that is shut off can come. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::enrol`]; a problem says what stands against it.
    pub async fn check_offline(&self, body: &CheckOffline) -> Result<(), ClientError> {
        let request = self.peer.request(Method::PUT, &["v1", "offline-moves", "check"], BROWSE_DEADLINE);
        self.peer.done(request.json(body)).await
    }

    /// Makes the destination of an offline move ready.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn receive_offline(&self, attempt: Attempt, body: &ReceiveOffline) -> Result<OfflineReady, ClientError> {
        let request = self.offline(Method::PUT, attempt, Some("destination")).timeout(STORAGE_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Makes the source of an offline move ready: the VM is held.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn send_offline(&self, attempt: Attempt, body: &SendOffline) -> Result<OfflineReport, ClientError> {
        self.peer.json(self.offline(Method::PUT, attempt, Some("source")).json(body)).await
    }

    /// Begins to copy, at the source.
    ///
    /// # Errors
    /// As [`Self::enrol`]; a problem with status 404 when the agent knows nothing of the attempt.
    pub async fn perform_offline(&self, attempt: Attempt) -> Result<OfflineReport, ClientError> {
        self.peer.json(self.offline(Method::PUT, attempt, Some("perform"))).await
    }

    /// How one end of an offline move stands, when its sequence is beyond `after` or `wait` is over.
    ///
    /// # Errors
    /// As [`Self::perform_offline`].
    pub async fn report_offline(
        &self,
        attempt: Attempt,
        after: u64,
        wait: Duration,
    ) -> Result<OfflineReport, ClientError> {
        let request = self.offline(Method::GET, attempt, None).timeout(wait + POLL_GRACE);
        let pairs = [("after", after.to_string()), ("wait_ms", wait.as_millis().to_string())];
        self.peer.json(request.query(&pairs)).await
    }

    /// Gives the destination of an offline move the VM: the point of no return.
    ///
    /// # Errors
    /// As [`Self::perform_offline`].
    pub async fn define_offline(&self, attempt: Attempt) -> Result<OfflineReport, ClientError> {
        self.peer.json(self.offline(Method::PUT, attempt, Some("define"))).await
    }

    /// Ends an offline move; refused with `job.past-pivot` by a destination that has the VM.
    ///
    /// # Errors
    /// As [`Self::perform_offline`].
    pub async fn abort_offline(&self, attempt: Attempt) -> Result<OfflineReport, ClientError> {
        self.peer.json(self.offline(Method::PUT, attempt, Some("abort")).timeout(ABORT_DEADLINE)).await
    }

    /// Ends an offline move that arrived on this host: definition, files, autostart.
    ///
    /// # Errors
    /// As [`Self::perform_offline`].
    pub async fn confirm_offline(&self, attempt: Attempt, body: &ConfirmRequest) -> Result<OfflineReport, ClientError> {
        let request = self.offline(Method::PUT, attempt, Some("confirm")).timeout(STORAGE_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Cleans everything of the attempt.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub async fn release_offline(&self, attempt: Attempt) -> Result<(), ClientError> {
        self.peer.done(self.offline(Method::DELETE, attempt, None).timeout(STORAGE_DEADLINE)).await
    }

    fn offline(&self, method: Method, attempt: Attempt, verb: Option<&str>) -> RequestBuilder {
        let (job, generation) = (attempt.job.to_string(), attempt.generation.to_string());
        let mut segments = vec!["offline-moves", job.as_str(), generation.as_str()];
        segments.extend(verb);
        self.call(method, &segments)
    }

    fn storage(&self, method: Method, attempt: Attempt, verb: Option<&str>) -> RequestBuilder {
        let (job, generation) = (attempt.job.to_string(), attempt.generation.to_string());
        let mut segments = vec!["storage-moves", job.as_str(), generation.as_str()];
        segments.extend(verb);
        self.call(method, &segments)
    }

    fn call(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        self.peer.request(method, &[&["v1"], segments].concat(), DEADLINE)
    }

    fn token(&self, method: Method, share: ShareId, name: &str) -> RequestBuilder {
        self.call(method, &["shares", &share.to_string(), "token", name])
    }

    fn locks(&self, method: Method, share: ShareId, name: &str) -> RequestBuilder {
        self.call(method, &["shares", &share.to_string(), "locks", name])
    }

    fn migration(&self, method: Method, attempt: Attempt, verb: Option<&str>) -> RequestBuilder {
        let (job, generation) = (attempt.job.to_string(), attempt.generation.to_string());
        let mut segments = vec!["migrations", job.as_str(), generation.as_str()];
        segments.extend(verb);
        self.call(method, &segments)
    }

    async fn put_migration(&self, attempt: Attempt, verb: &str) -> Result<MigrationReport, ClientError> {
        self.peer.json(self.migration(Method::PUT, attempt, Some(verb))).await
    }
}
