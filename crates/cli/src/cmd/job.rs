//! `ferry job …`

use ferry_client::server::ServerClient;
use ferry_core::{api::server::JobView, id::JobId, migration::Phase};

use crate::{
    Failure, Output,
    arguments::{JobCommand, Since},
    output::summary,
    progress, render,
};

pub(crate) async fn run(command: JobCommand, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    match command {
        JobCommand::List { limit, since } => {
            let jobs = client.jobs(since.map(|since| since.at_ms), Some(limit)).await?;
            output.data(&jobs, |list| render::jobs(list));
        }
        JobCommand::Export { since } => export(since, client).await?,
        JobCommand::Show { job } => output.data(&client.job(job).await?, render::job),
        JobCommand::Watch { job } => {
            let each = |view: &JobView| {
                if output.json && !view.phase.ended() {
                    output.data(view, |_| String::new());
                }
            };
            let ended = progress::follow(client, job, output, each).await?;
            output.data(&ended, render::job);
            outcome(ended.id, ended.phase, summary(&ended.sentences, &ended.summary))?;
        }
        JobCommand::Cancel { job } => {
            let view = client.cancel_job(job).await?;
            output.talk(&format!("Job {job} is being cancelled; `ferry job watch {job}` follows it"));
            output.data(&view, render::job);
        }
        JobCommand::Restart { job, wait } => accepted(&client.restart_job(job).await?, wait, client, output).await?,
        JobCommand::Retry { job } => output.data(&client.retry_job(job).await?, render::job),
        JobCommand::Undo { job } => output.data(&client.undo_job(job).await?, render::job),
        JobCommand::Dismiss { job } => output.data(&client.dismiss_job(job).await?, render::job),
    }
    Ok(())
}

/// The audit is always printed as JSON lines, because programs read it.
async fn export(since: Option<Since>, client: &ServerClient) -> Result<(), Failure> {
    let lines = Output { json: true };
    let mut after = None;
    loop {
        let page = client.audit(since.map(|since| since.at_ms), after).await?;
        for record in &page.records {
            lines.data(record, |_| String::new());
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

/// Shows an accepted job: at once, or with `--wait` when it has ended.
pub(crate) async fn accepted(
    job: &JobView,
    wait_for_end: bool,
    client: &ServerClient,
    output: &Output,
) -> Result<(), Failure> {
    if wait_for_end {
        return wait(job.id, client, output).await;
    }
    output.talk(&format!("Job {0} is accepted; `ferry job watch {0}` follows it", job.id));
    output.data(job, render::job);
    Ok(())
}

/// Follows a job to its end and prints it.
async fn wait(job: JobId, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    let ended = progress::follow(client, job, output, |_| {}).await?;
    output.data(&ended, render::job);
    outcome(ended.id, ended.phase, summary(&ended.sentences, &ended.summary))
}

fn outcome(job: JobId, phase: Phase, summary: String) -> Result<(), Failure> {
    if phase == Phase::Succeeded { Ok(()) } else { Err(Failure::Job { job, phase, summary }) }
}
