//! An agent's control API, version 2. Only the server that the agent is enrolled with may call it.

use std::time::Duration;

use ferry_core::{
    api::{
        agent::{
            AttachRequest, Check, DiskSize, EPOCH_HEADER, EnrolRequest, FileSize, LockStep, Observation, Part, Power,
            PowerRequest, Prepare, Report, ShareToken, Verb,
        },
        problem::Problem,
    },
    finding::FindingId,
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

/// For most calls, which read or change something on the host itself.
const DEADLINE: Duration = Duration::from_secs(30);
/// For mounting a share, because a file server may be slow to refuse.
const ATTACH_DEADLINE: Duration = Duration::from_secs(90);
/// For new files, because a file server may be slow, and for copies and migrations, which end only when libvirt has
/// ended them.
const STORAGE_DEADLINE: Duration = Duration::from_secs(90);
/// For browsing, which asks file systems and file servers, some of them slow or dead: the agent's own deadlines are
/// shorter.
const BROWSE_DEADLINE: Duration = Duration::from_secs(60);
/// How much longer than its own wait a long poll may take.
const POLL_GRACE: Duration = Duration::from_secs(5);

/// Calls one agent. Cheap to clone: clones share their connections.
#[derive(Clone, Debug)]
pub struct AgentClient {
    peer: Peer,
}

/// An attempt of a job in the form that agents know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The job.
    pub job: JobId,
    /// Its generation; older ones are refused.
    pub generation: Generation,
}

impl AgentClient {
    /// A client of the agent at `address` (`ADDRESS:PORT`) with the key `pin`. `me` is the server's key, which the
    /// agent pins.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] if the address cannot be used. Nothing is sent.
    pub fn new(address: &str, pin: Pin, me: &KeyPair) -> Result<Self, ClientError> {
        Self::with_headers(address, pin, me, HeaderMap::new())
    }

    /// Like [`Self::new`], but each request also identifies the run of the server.
    ///
    /// # Errors
    /// Those of [`Self::new`].
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
    /// Those of every method: [`ClientError::Refused`] with the findings, or no valid answer.
    pub async fn enrol(&self, body: &EnrolRequest) -> Result<HostFacts, ClientError> {
        self.peer.json(self.call(Method::POST, &["enrol"]).json(body)).await
    }

    /// Reads the host's facts now.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn host(&self) -> Result<HostFacts, ClientError> {
        self.peer.json(self.call(Method::GET, &["host"])).await
    }

    /// The agent's observation, as soon as it is newer than `known`, or after `wait`.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
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

    /// Makes the agent refresh its observation and returns it: it is no older than the request.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn refresh(&self) -> Result<Observation, ClientError> {
        let request = self.peer.request(Method::GET, &["v1", "observe"], DEADLINE);
        self.peer.json(request.query(&[("fresh", "true")])).await
    }

    /// Attaches a share. May be repeated.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn attach_share(&self, share: ShareId, body: &AttachRequest) -> Result<AttachedShare, ClientError> {
        let request = self.peer.request(Method::PUT, &["v1", "shares", &share.to_string()], ATTACH_DEADLINE);
        self.peer.json(request.json(body)).await
    }

    /// Detaches a share. Ok if it was not attached.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn detach_share(&self, share: ShareId) -> Result<(), ClientError> {
        let segments = ["v1", "shares", &share.to_string()];
        self.peer.done(self.peer.request(Method::DELETE, &segments, ATTACH_DEADLINE)).await
    }

    /// Writes a token file on a share.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn write_token(&self, share: ShareId, name: &str, token: &ShareToken) -> Result<(), ClientError> {
        self.peer.done(self.token(Method::PUT, share, name).json(token)).await
    }

    /// Reads a token file on a share.
    ///
    /// # Errors
    /// Those of [`Self::enrol`]; a problem with status 404 if there is no such file.
    pub async fn read_token(&self, share: ShareId, name: &str) -> Result<ShareToken, ClientError> {
        self.peer.json(self.token(Method::GET, share, name)).await
    }

    /// Removes a token file from a share. Ok if there is none.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn remove_token(&self, share: ShareId, name: &str) -> Result<(), ClientError> {
        self.peer.done(self.token(Method::DELETE, share, name)).await
    }

    /// Does one step of a trial of QEMU's locks on a share.
    ///
    /// # Errors
    /// Those of [`Self::enrol`]; a problem with the finding `share.locks` if the locks do not work.
    pub async fn try_locks(&self, share: ShareId, name: &str, step: LockStep) -> Result<(), ClientError> {
        self.peer.done(self.locks(Method::PUT, share, name).json(&step)).await
    }

    /// Ends a trial of QEMU's locks, whatever its result. Ok if there is none.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn end_lock_trial(&self, share: ShareId, name: &str) -> Result<(), ClientError> {
        self.peer.done(self.locks(Method::DELETE, share, name)).await
    }

    /// The places that the host offers for files: its storage roots and its shares.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn places(&self) -> Result<Vec<OfferedPlace>, ClientError> {
        self.peer.json(self.peer.request(Method::GET, &["v1", "places"], BROWSE_DEADLINE)).await
    }

    /// The contents of a directory.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn directory(&self, location: &Location) -> Result<DirectoryListing, ClientError> {
        self.peer.json(self.peer.request(Method::GET, &["v1", "directory"], BROWSE_DEADLINE).query(location)).await
    }

    /// Checks that a directory can hold VM files. The check leaves nothing behind.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn check_directory(&self, location: &Location) -> Result<(), ClientError> {
        let request = self.peer.request(Method::PUT, &["v1", "directory", "check"], BROWSE_DEADLINE);
        self.peer.done(request.json(location)).await
    }

    /// Starts a VM or asks its guest to shut down.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn power(&self, vm: VmId, power: Power) -> Result<(), ClientError> {
        let request = self.call(Method::PUT, &["vms", &vm.to_string(), "power"]);
        self.peer.done(request.json(&PowerRequest { power })).await
    }

    /// Sizes of a running VM's disks that are writable files.
    ///
    /// # Errors
    /// Those of [`Self::enrol`].
    pub async fn disks(&self, vm: VmId) -> Result<Vec<DiskSize>, ClientError> {
        self.peer.json(self.call(Method::GET, &["vms", &vm.to_string(), "disks"])).await
    }

    /// Sizes of files of a VM that is shut off, by their devices. UEFI variables that do not exist yet are omitted.
    ///
    /// # Errors
    /// Those of [`Self::enrol`]; `vm.running`.
    pub async fn files(&self, vm: VmId, only: &[&str]) -> Result<Vec<FileSize>, ClientError> {
        let request = self.call(Method::GET, &["vms", &vm.to_string(), "files"]);
        self.peer.json(request.query(&[("only", only.join(","))])).await
    }

    /// The space that each copy of a move would need, if the host knows it. Changes nothing.
    ///
    /// # Errors
    /// Those of [`Self::enrol`]; a problem with the findings against the move.
    pub async fn check(&self, check: &Check) -> Result<Vec<ByteCount>, ClientError> {
        let request = self.peer.request(Method::PUT, &["v2", "moves", "check"], BROWSE_DEADLINE);
        self.of_move(self.peer.json(request.json(check)).await)
    }

    /// Prepares the host for its part.
    ///
    /// # Errors
    /// Those of [`Self::enrol`]; [`ClientError::OldVersion`].
    pub async fn prepare<P: Part>(&self, attempt: Attempt, part: &P) -> Result<P::Ready, ClientError> {
        let part: Prepare = part.clone().into();
        self.of_move(self.peer.json(self.part(Method::PUT, attempt, STORAGE_DEADLINE).json(&part)).await)
    }

    /// Makes a prepared host do something. Ok for [`Verb::Perform`]: the move has started.
    ///
    /// # Errors
    /// Those of [`Self::prepare`]; a problem with status 404 if the agent does not know the attempt.
    pub async fn ask(&self, attempt: Attempt, verb: Verb) -> Result<Report, ClientError> {
        let deadline = match verb {
            Verb::Perform | Verb::Resume | Verb::Define | Verb::EndCopy => DEADLINE,
            Verb::Abort | Verb::Confirm(_) => STORAGE_DEADLINE,
        };
        self.of_move(self.peer.json(self.part(Method::POST, attempt, deadline).json(&verb)).await)
    }

    /// The report of the host's part, once its sequence is above `after`, or once `wait` has passed.
    ///
    /// # Errors
    /// Those of [`Self::ask`].
    pub async fn report(&self, attempt: Attempt, after: u64, wait: Duration) -> Result<Report, ClientError> {
        let pairs = [("after", after.to_string()), ("wait_ms", wait.as_millis().to_string())];
        self.of_move(self.peer.json(self.part(Method::GET, attempt, wait + POLL_GRACE).query(&pairs)).await)
    }

    /// Removes everything that belongs to the attempt.
    ///
    /// # Errors
    /// Those of [`Self::prepare`].
    pub async fn release(&self, attempt: Attempt) -> Result<(), ClientError> {
        self.of_move(self.peer.done(self.part(Method::DELETE, attempt, STORAGE_DEADLINE)).await)
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

    fn part(&self, method: Method, attempt: Attempt, deadline: Duration) -> RequestBuilder {
        let (job, generation) = (attempt.job.to_string(), attempt.generation.to_string());
        self.peer.request(method, &["v2", "moves", &job, &generation], deadline)
    }

    fn of_move<T>(&self, answer: Result<T, ClientError>) -> Result<T, ClientError> {
        answer.map_err(
            |error| if has_no_route(&error) { ClientError::OldVersion { peer: self.peer.name() } } else { error },
        )
    }
}

/// Whether an agent does not know the route. This proves nothing about the move, unlike an agent that does not know the
/// attempt.
fn has_no_route(error: &ClientError) -> bool {
    let is_invalid = |problem: &Problem| problem.findings.iter().any(|found| found.id == FindingId::RequestInvalid);
    error.problem().is_some_and(|problem| problem.status == 404 && is_invalid(problem))
}

#[cfg(test)]
mod tests {
    use ferry_core::finding::Finding;

    use super::*;

    #[test]
    fn an_agent_without_the_route_is_not_taken_for_one_that_knows_nothing_of_a_move() {
        for (row, status, id, expected) in [
            ("there is no such route", 404, FindingId::RequestInvalid, true),
            ("the body is not understood", 422, FindingId::RequestInvalid, false),
            ("the attempt is not known", 404, FindingId::JobUnknown, false),
        ] {
            let finding = Finding::of_text(id, "request", "A message", "A fix");
            let error = ClientError::Refused(Box::new(Problem::refused(status, "A title", vec![finding])));
            assert_eq!(has_no_route(&error), expected, "{row}");
        }
    }
}
