//! The profile document: what is understood is written and understood equally again.
#![no_main]

use esgz::profile::Profile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Ok(profile) = Profile::parse(json) {
        let written = profile.to_json();
        let again = Profile::parse(&written).expect("what was written is understood");
        assert_eq!(again.to_json(), written);
    }
});
