//! Points in time for people, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, now.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// `2026-11-28 17:49:05 UTC`. Days to a date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
pub(crate) fn at(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A point in time, and how long that is ago: `2026-11-28 17:49:05 UTC (3 min 20 s ago)`.
pub(crate) fn ago(ms: u64, now: u64) -> String {
    format!("{} ({} ago)", at(ms), span(now.saturating_sub(ms)))
}

/// `0.3 s`, `45 s`, `3 min 20 s`, `5 h 2 min`, `12 d 3 h`.
pub(crate) fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..10 => format!("{}.{} s", s, ms % 1000 / 100),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(at(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(at(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(at(1_795_888_145_000), "2026-11-28 17:49:05 UTC");
        assert_eq!(at(4_107_542_400_000), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn spans_have_the_unit_that_fits() {
        let all = [340, 45_000, 200_000, 18_120_000, 1_047_600_000].map(span);
        assert_eq!(all, ["0.3 s", "45 s", "3 min 20 s", "5 h 2 min", "12 d 3 h"]);
    }
}
