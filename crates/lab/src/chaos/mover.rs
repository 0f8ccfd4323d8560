//! Requests one move of a run.

use std::{
    process::Command,
    sync::{Arc, Mutex},
    thread::{JoinHandle, sleep},
    time::Duration,
};

use ferry_core::api::server::JobView;

use super::{
    aim::Aim,
    plan::{Files, Move},
    stage::{Stage, local_folder},
};
use crate::{images::Place, run::run_within};

/// Time limit of a command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(60);

/// Requests a move, and cancels it at the planned time; in a thread of its own, because each command may block.
pub(super) struct Mover {
    answers: Arc<Mutex<Answers>>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
pub(super) struct Answers {
    pub(super) answered: bool,
    pub(super) job: Option<JobView>,
    pub(super) refusal: Option<String>,
}

impl Mover {
    pub(super) fn start(stage: &Stage, one: &Move, aim: &Aim, run: u64) -> anyhow::Result<Self> {
        let destination = &stage.hosts()[aim.destination].name;
        let mut words = vec!["--json", "vm"];
        let disk = one.files.map(|files| file_of(stage, &aim.guest, files, run));
        match one.files.filter(|files| files.guest_stays) {
            Some(_) => words.extend(["move-storage", &aim.guest]),
            None => words.extend(["migrate", &aim.guest, "--to", destination]),
        }
        words.extend(disk.iter().flat_map(|disk| ["--disk", disk]));
        let mut migrate = stage.ferry.command(&words)?;
        if let Some(cap) = one.bandwidth_mib_per_s {
            migrate.args(["--bandwidth", &cap.to_string()]);
        }
        let cancel = stage.ferry.command(&["--json", "job", "cancel"])?;
        let (answers, one) = (Arc::new(Mutex::new(Answers::default())), *one);
        let shared = Arc::clone(&answers);
        let thread = std::thread::spawn(move || carry_out(&one, migrate, cancel, &shared));
        Ok(Self { answers, thread })
    }

    /// `None` until it is known whether the move was accepted; then its job, if it was.
    pub(super) fn answered(&self) -> Option<Option<u64>> {
        let answers = self.answers.lock().expect("no thread panicked");
        answers.answered.then(|| answers.job.as_ref().map(|job| job.id.0))
    }

    pub(super) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its commands, each of which has a time limit.
    pub(super) fn wait(self) -> Answers {
        self.thread.join().expect("no thread panicked");
        std::mem::take(&mut *self.answers.lock().expect("no thread panicked"))
    }
}

/// The new file of a guest's disk; a different one in each run.
fn file_of(stage: &Stage, guest: &str, files: Files, run: u64) -> String {
    let format = files.format.name();
    let folder = match files.place {
        Place::Share => format!("{}\\{guest}\\", stage.ferry.files.unc()),
        Place::Local => format!("{}/", local_folder(guest)),
    };
    format!("vda={folder}run{run}.{format},format={format}")
}

fn carry_out(one: &Move, migrate: Command, mut cancel: Command, answers: &Mutex<Answers>) {
    sleep(Duration::from_millis(one.delay_ms));
    let outcome = run_within(migrate, COMMAND_DEADLINE);
    let job = match &outcome {
        Ok(answer) if answer.ok() => serde_json::from_str::<JobView>(answer.out.trim()).ok(),
        Ok(_) | Err(_) => None,
    };
    let id = job.as_ref().map(|job| job.id);
    let refusal = match (&job, outcome) {
        (Some(_), _) => None,
        (None, Ok(answer)) => Some(format!("{}{}", answer.out.trim(), answer.err.trim())),
        (None, Err(error)) => Some(format!("{error:#}")),
    };
    *answers.lock().expect("no thread panicked") = Answers { answered: true, job, refusal };
    if let (Some(id), Some(ms)) = (id, one.cancel_ms) {
        sleep(Duration::from_millis(ms));
        cancel.arg(id.to_string());
        // It may come too late, or the server may be down: the job's end shows the result.
        let _ = run_within(cancel, COMMAND_DEADLINE);
    }
}
