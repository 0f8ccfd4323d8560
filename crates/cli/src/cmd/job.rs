//! `ferry job …`

use ferry_client::server::ServerClient;
use ferry_core::{id::JobId, migration::Phase};

use crate::{Failure, Output, arguments::JobCommand, progress, render};

pub(crate) async fn run(command: JobCommand, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    match command {
        JobCommand::List { limit } => output.data(&client.jobs(Some(limit)).await?, |list| render::jobs(list)),
        JobCommand::Show { job } => output.data(&client.job(job).await?, render::job),
        JobCommand::Watch { job } => {
            let each = |view: &ferry_core::api::server::JobView| {
                if output.json && !view.phase.ended() {
                    output.data(view, |_| String::new());
                }
            };
            let ended = progress::follow(client, job, output, each).await?;
            output.data(&ended, render::job);
            outcome(ended.id, ended.phase, ended.summary)?;
        }
        JobCommand::Cancel { job } => {
            let view = client.cancel_job(job).await?;
            output.talk(&format!("Job {job} is being cancelled; `ferry job watch {job}` follows it"));
            output.data(&view, render::job);
        }
    }
    Ok(())
}

/// Follows a job to its end and prints it.
pub(crate) async fn wait(job: JobId, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    let ended = progress::follow(client, job, output, |_| {}).await?;
    output.data(&ended, render::job);
    outcome(ended.id, ended.phase, ended.summary)
}

fn outcome(job: JobId, phase: Phase, summary: String) -> Result<(), Failure> {
    if phase == Phase::Succeeded { Ok(()) } else { Err(Failure::Job { job, phase, summary }) }
}
