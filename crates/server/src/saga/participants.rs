//! Both hosts of one attempt of a live move, and what the server remembers of their answers.

use ferry_client::agent::Attempt;
use ferry_core::{
    id::VmId,
    migration::{LogEvent, newest_attempt},
};

use super::site::Site;
use crate::jobs::running::Running;

/// Both hosts of one attempt.
pub(super) struct Participants<'a, S: Site> {
    pub(super) site: &'a S,
    pub(super) vm: VmId,
    pub(super) attempt: Attempt,
    pub(super) source: &'a S::Host,
    pub(super) destination: &'a S::Host,
    pub(super) running: &'a Running,
    /// Whether the destination has ended its copy on Ferry's request and has forgotten the attempt since.
    pub(super) ended_there: bool,
}

impl<S: Site> Participants<'_, S> {
    /// Whether a complete copy was once seen at the destination and it is unknown whether Ferry has ended it.
    pub(super) async fn arrived(&self) -> bool {
        !self.ended_there && self.remembers().await
    }

    /// Records that a complete copy was seen, at most once per attempt. The record is on disk when this returns.
    pub(super) async fn keep_arrived(&self) {
        if !self.remembers().await {
            self.running.kept(|| self.site.append(self.attempt.job, &[LogEvent::Arrived])).await;
            self.running.changed();
        }
    }

    async fn remembers(&self) -> bool {
        let log = self.running.kept(|| self.site.events(self.attempt.job)).await;
        newest_attempt(&log).contains(&LogEvent::Arrived)
    }
}
