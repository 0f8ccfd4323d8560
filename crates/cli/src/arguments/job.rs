//! `ferry job …`

use clap::Subcommand;
use ferry_core::id::JobId;
use time::{Date, OffsetDateTime, macros::format_description};

/// A moment, for `--since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// Unix milliseconds.
    pub at_ms: u64,
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let help = || "give an age such as 90m, 12h or 7d, or a day such as 2026-11-23 (UTC)".to_owned();
        let milliseconds = |at: OffsetDateTime| Self { at_ms: (at.unix_timestamp().max(0) as u64) * 1_000 };
        if let Ok(day) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
            return Ok(milliseconds(day.midnight().assume_utc()));
        }
        let unit = text.chars().last().ok_or_else(help)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 24 * 3_600,
            _ => return Err(help()),
        };
        let count: u32 = text[..text.len() - 1].parse().map_err(|_| help())?;
        Ok(milliseconds(OffsetDateTime::now_utc() - time::Duration::seconds(i64::from(count) * seconds)))
    }
}

/// `ferry job …`
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// List jobs, newest first
    List {
        /// At most this many
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Only jobs accepted since then: an age such as 90m, 12h or 7d, or a day such as 2026-11-23 (UTC)
        #[arg(long)]
        since: Option<Since>,
    },
    /// Print the records of finished jobs, oldest first, one JSON object per line
    Export {
        /// Only jobs accepted since then: an age such as 90m, 12h or 7d, or a day such as 2026-11-23 (UTC)
        #[arg(long)]
        since: Option<Since>,
    },
    /// Show a job with its steps and log
    Show {
        /// The job's number
        job: JobId,
    },
    /// Follow a job until it ends
    Watch {
        /// The job's number
        job: JobId,
    },
    /// Cancel a job; VMs that have not switched over stay where they are
    Cancel {
        /// The job's number
        job: JobId,
    },
    /// Start another attempt of a job that failed or was cancelled
    Restart {
        /// The job's number
        job: JobId,
        /// Wait, and show progress, until the job ends
        #[arg(long)]
        wait: bool,
    },
    /// Retry a stuck job now instead of at its next interval
    Retry {
        /// The job's number
        job: JobId,
    },
    /// Revert what a job did; possible until the VM has switched over
    Undo {
        /// The job's number
        job: JobId,
    },
    /// Give up a job that does not end by itself: nothing more is done, and what is left stays
    Dismiss {
        /// The job's number
        job: JobId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_an_age_or_a_day() {
        let day: Since = "1970-01-02".parse().expect("a day");
        assert_eq!(day.at_ms, 24 * 3_600 * 1_000);
        let now = OffsetDateTime::now_utc().unix_timestamp() as u64 * 1_000;
        let hours: Since = "12h".parse().expect("an age");
        assert!((43_200_000..43_260_000).contains(&(now + 1_000 - hours.at_ms)), "{hours:?}");
        for bad in ["", "h", "-1h", "1w", "2026-13-01", "1.5h", "½h"] {
            assert!(bad.parse::<Since>().is_err(), "{bad}");
        }
    }
}
