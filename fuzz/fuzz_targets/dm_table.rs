//! The multipath target's table line: what is understood is printed, and understood again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storagelink_multipath::table::MultipathTable;

fuzz_target!(|line: &str| {
    if let Ok(table) = line.parse::<MultipathTable>() {
        let again = table.to_string().parse::<MultipathTable>();
        assert_eq!(again.as_ref(), Ok(&table), "printed as {table}");
        assert!(table.paths().count() >= table.groups.len());
    }
});
