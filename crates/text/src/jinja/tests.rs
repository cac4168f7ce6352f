use std::time::Duration;

use super::*;

#[test]
fn dates_are_those_of_the_calendar() {
    let at = |seconds, format: &str| strftime(UNIX_EPOCH + Duration::from_secs(seconds), format);
    assert_eq!(at(0, "%d %b %Y %H:%M:%S %B %m%%"), "01 Jan 1970 00:00:00 January 01%");
    assert!(at(951_827_696, "%d %b %Y %T").starts_with("29 Feb 2000 12:34:56"));
    assert_eq!(at(951_827_696, "%A %a %j %-m %I %p %y %Q %"), "Tuesday Tue 060 2 12 PM 00 %Q %");
    // A clock that is wrong by ages costs no more than one that is right.
    assert!(at(u64::MAX / 4, "%Y").len() > 10);
}
