//! Machines made of files: zones that wrap, fail, vanish, come back and overlap; boards with and without counters.

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::*;

const RANGE: u64 = 262_143_328_850;

/// A root folder with a processor of 100 W in the table's place, load of our choice, and zones.
struct Fake(tempfile::TempDir);

impl Fake {
    fn new() -> Self {
        let fake = Self(tempfile::tempdir().unwrap());
        fake.write("proc/cpuinfo", "processor: 0\nmodel name: Intel Xeon Gold 6248\nphysical id: 0\n");
        fake.write("proc/meminfo", "MemTotal: 0 kB\n");
        fake.busy(0.0);
        fake
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl ToString) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.to_string()).unwrap();
    }

    /// Seconds for which the only processor was busy.
    fn busy(&self, seconds: f64) {
        self.write("proc/stat", format!("cpu  {} 0 0 1000 0 0 0 0 0 0\ncpu0 1\n", seconds * 100.0));
    }

    fn zone(&self, id: &str, name: &str, energy_j: f64) {
        self.write(&format!("sys/class/powercap/{id}/name"), name);
        self.write(&format!("sys/class/powercap/{id}/max_energy_range_uj"), RANGE);
        self.joules(id, energy_j);
    }

    fn joules(&self, id: &str, energy_j: f64) {
        self.write(&format!("sys/class/powercap/{id}/energy_uj"), (energy_j * 1e6).round() as u64);
    }

    fn remove(&self, id: &str) {
        fs::remove_dir_all(self.path(&format!("sys/class/powercap/{id}"))).unwrap();
    }

    fn options(&self) -> Options {
        Options { root: self.0.path().to_owned(), boards: Some(vec![]), ..Options::default() }
    }

    fn meter(&self) -> Meter {
        Meter::discover(self.options())
    }
}

/// From the start of the meter to `now_s`.
fn window(meter: &mut Meter, start: &Snapshot, now_s: f64) -> Window {
    meter.poll_at(now_s);
    meter.snapshot().since(start)
}

fn assert_close(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{got}, expected {want}");
}

#[test]
fn overlapping_zones_are_counted_once() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 10.0);
    fake.zone("intel-rapl:0:0", "core", 5.0);
    fake.zone("intel-rapl:0:1", "uncore", 1.0);
    fake.zone("intel-rapl:0:2", "dram", 2.0);
    fake.zone("intel-rapl:1", "package-1", 20.0);
    fake.zone("intel-rapl:1:0", "dram", 3.0);
    fake.zone("intel-rapl-mmio:0", "package-0", 10.0);
    fake.zone("intel-rapl:2", "mystery", 7.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    for (id, joules) in [
        ("intel-rapl:0", 110.0),
        ("intel-rapl:0:0", 95.0),
        ("intel-rapl:0:2", 12.0),
        ("intel-rapl:1", 70.0),
        ("intel-rapl:1:0", 8.0),
        ("intel-rapl-mmio:0", 110.0),
        ("intel-rapl:2", 99.0),
    ] {
        fake.joules(id, joules);
    }
    let window = window(&mut meter, &start, 10.0);
    assert_close(window.energy.joules, 100.0 + 10.0 + 50.0 + 5.0);
    assert_eq!((window.energy.grade, window.complete()), (Grade::B, true));
    assert!(meter.notes().iter().any(|n| n.contains("mystery")), "{:?}", meter.notes());
}

#[test]
fn a_platform_counter_stands_for_the_packages_and_their_memory() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 0.0);
    fake.zone("intel-rapl:0:0", "dram", 0.0);
    fake.zone("intel-rapl:1", "psys", 0.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 40.0);
    fake.joules("intel-rapl:0:0", 10.0);
    fake.joules("intel-rapl:1", 80.0);
    let window = window(&mut meter, &start, 1.0);
    assert_close(window.energy.joules, 80.0);
    assert_close(window.inside.iter().map(|s| s.energy.joules).sum(), 50.0);
}

#[test]
fn a_platform_counter_that_reads_less_than_its_packages_is_dismissed() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 0.0);
    fake.zone("intel-rapl:1", "psys", 0.0);
    let mut meter = fake.meter();
    for t in 1..=3 {
        fake.joules("intel-rapl:0", 40.0 * f64::from(t));
        fake.joules("intel-rapl:1", 1.0 * f64::from(t));
        meter.poll_at(f64::from(t));
    }
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 160.0);
    assert_close(window(&mut meter, &start, 4.0).energy.joules, 40.0);
    assert!(meter.sources().iter().any(|(_, state)| matches!(state, State::Silent(why) if why.contains("dismissed"))));
}

#[test]
fn two_dies_that_show_one_counter_are_counted_once_and_two_counters_twice() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0-die-0", 1000.0);
    fake.zone("intel-rapl:1", "package-0-die-1", 1000.0);
    fake.zone("intel-rapl:2", "package-1-die-0", 500.0);
    fake.zone("intel-rapl:3", "package-1-die-1", 700.0);
    let zones = Zones::discover(fake.0.path());
    let ids: Vec<_> = zones.packages.iter().map(|z| &*z.id).collect();
    assert_eq!(ids, ["intel-rapl:0", "intel-rapl:2", "intel-rapl:3"]);
    assert!(zones.left_out[0].1.contains("intel-rapl:0"));
}

// D1 end to end: the failed read falls inside the window and at its border.
#[test]
fn d1_a_read_that_fails_inside_a_window_changes_nothing() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 100_000.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 100_001.5);
    meter.poll_at(1.0);
    fake.write("sys/class/powercap/intel-rapl:0/energy_uj", "");
    meter.poll_at(2.0);
    fake.joules("intel-rapl:0", 100_003.0);
    let window = window(&mut meter, &start, 3.0);
    assert_close(window.energy.joules, 3.0);
    assert_eq!(window.energy.grade, Grade::B);
}

#[test]
fn d1_a_read_that_fails_at_the_border_is_modelled_and_made_good_later() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 100_000.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.write("sys/class/powercap/intel-rapl:0/energy_uj", "garbage");
    meter.poll_at(1.0);
    let border = meter.snapshot();
    let first = border.since(&start);
    assert!(first.energy.joules > 0.0 && first.energy.grade == Grade::E, "{first:?}");
    fake.joules("intel-rapl:0", 100_300.0);
    let second = window(&mut meter, &border, 2.0);
    let whole = meter.snapshot().since(&start);
    assert_close(whole.energy.joules, 300.0);
    assert_eq!(whole.energy.grade, Grade::B);
    assert_close(first.energy.joules + second.energy.joules, 300.0);
}

#[test]
fn d2_a_counter_that_wraps_is_no_zero() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 262_143.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 500.0);
    assert_close(window(&mut meter, &start, 1.0).energy.joules, 500.328_85);
}

#[test]
fn a_zone_that_is_removed_changes_the_grade_and_never_yields_zero() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 50.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 150.0);
    assert_eq!(window(&mut meter, &start, 1.0).energy.grade, Grade::B);
    let removed = meter.snapshot();
    fake.remove("intel-rapl:0");
    fake.busy(10.0);
    let after = window(&mut meter, &removed, 11.0);
    assert!(after.energy.joules > 100.0 && after.energy.grade == Grade::E, "{after:?}");
    assert!(!meter.measures());
}

#[test]
fn a_zone_that_comes_back_bridges_if_it_went_on_counting() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 50.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.remove("intel-rapl:0");
    meter.poll_at(1.0);
    fake.zone("intel-rapl:0", "package-0", 950.0);
    assert_close(window(&mut meter, &start, 10.0).energy.joules, 900.0);
}

#[test]
fn a_reset_is_filled_by_the_model_and_says_so() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 150_000.0);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 3.0);
    let window = window(&mut meter, &start, 2.0);
    assert!(window.energy.joules < 300.0 && window.energy.joules > 0.0, "{window:?}");
    assert_eq!(window.energy.grade, Grade::E);
}

#[cfg(unix)]
#[test]
fn counters_that_may_not_be_read_are_named_and_the_model_stands_in() {
    use std::os::unix::fs::PermissionsExt;
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 1.0);
    let file = fake.path("sys/class/powercap/intel-rapl:0/energy_uj");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&file).is_ok() {
        // Root may read everything; a folder in the file's place cannot be read by anyone.
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
    }
    let mut meter = fake.meter();
    let start = meter.snapshot();
    let window = window(&mut meter, &start, 10.0);
    assert!(window.energy.joules > 0.0 && window.energy.grade == Grade::E);
    assert!(meter.sources().iter().any(|(s, state)| s.grade == Grade::B && matches!(state, State::Silent(_))));
}

/// A board whose counters tests set.
#[derive(Default)]
struct FakeBoard {
    energy_mj: AtomicU64,
    power_mw: AtomicU64,
    no_energy: AtomicBool,
    no_power: AtomicBool,
}

impl Board for FakeBoard {
    fn name(&self) -> String {
        "fake board".into()
    }

    fn energy_mj(&self) -> Result<u64, String> {
        if self.no_energy.load(Ordering::Relaxed) {
            Err("not supported".into())
        } else {
            Ok(self.energy_mj.load(Ordering::Relaxed))
        }
    }

    fn power_mw(&self) -> Result<u32, String> {
        if self.no_power.load(Ordering::Relaxed) {
            Err("not supported".into())
        } else {
            Ok(self.power_mw.load(Ordering::Relaxed) as u32)
        }
    }
}

fn with_board(fake: &Fake, board: &Arc<FakeBoard>) -> Meter {
    Meter::discover(Options { boards: Some(vec![board.clone()]), ..fake.options() })
}

fn of_gpu(window: &Window) -> f64 {
    window.shares.iter().filter(|s| s.component == "gpu 0").map(|s| s.energy.joules).sum()
}

#[test]
fn a_board_with_a_counter_is_read_by_it() {
    let (fake, board) = (Fake::new(), Arc::new(FakeBoard::default()));
    board.power_mw.store(999_000, Ordering::Relaxed);
    let mut meter = with_board(&fake, &board);
    let start = meter.snapshot();
    board.energy_mj.store(500_000, Ordering::Relaxed);
    let window = window(&mut meter, &start, 2.0);
    assert_close(of_gpu(&window), 500.0);
    // Half a kilojoule in 2 s: a lag of 0.1 s at both ends is 10 % of it.
    let share = window.shares.iter().find(|s| s.component == "gpu 0").unwrap();
    assert_close(share.energy.uncertainty_j, 500.0 * (0.03 + 0.1));
}

// D7: others report 0 kWh for such boards.
#[test]
fn d7_a_board_without_a_counter_is_sampled() {
    let (fake, board) = (Fake::new(), Arc::new(FakeBoard::default()));
    board.no_energy.store(true, Ordering::Relaxed);
    board.power_mw.store(100_000, Ordering::Relaxed);
    let mut meter = with_board(&fake, &board);
    let start = meter.snapshot();
    meter.poll_at(1.0);
    board.power_mw.store(300_000, Ordering::Relaxed);
    let window = window(&mut meter, &start, 2.0);
    assert_close(of_gpu(&window), 100.0 + 200.0);
    assert!(window.shares.iter().any(|s| s.energy.grade == Grade::C));
}

#[test]
fn d7_a_board_that_tells_nothing_is_unknown_and_not_zero() {
    let (fake, board) = (Fake::new(), Arc::new(FakeBoard::default()));
    board.no_energy.store(true, Ordering::Relaxed);
    board.no_power.store(true, Ordering::Relaxed);
    let mut meter = with_board(&fake, &board);
    let start = meter.snapshot();
    let window = window(&mut meter, &start, 2.0);
    assert_eq!(window.unknown, [Unknown { component: "gpu 0".into(), seconds: 2.0 }]);
    assert!(!window.complete() && window.boundary().contains("unknown"));
}

#[test]
fn a_board_that_is_removed_becomes_unknown_and_a_reloaded_driver_loses_only_its_gap() {
    let (fake, board) = (Fake::new(), Arc::new(FakeBoard::default()));
    board.energy_mj.store(1_000_000, Ordering::Relaxed);
    let mut meter = with_board(&fake, &board);
    let start = meter.snapshot();
    board.no_energy.store(true, Ordering::Relaxed);
    let gone = window(&mut meter, &start, 5.0);
    assert_eq!(gone.unknown.len(), 1);
    board.no_energy.store(false, Ordering::Relaxed);
    board.energy_mj.store(10, Ordering::Relaxed); // counts from the reload
    meter.poll_at(6.0);
    let back = meter.snapshot();
    assert_close(back.since(&start).unknown[0].seconds, 6.0);
    board.energy_mj.store(50_010, Ordering::Relaxed);
    let again = window(&mut meter, &back, 7.0);
    assert_close(of_gpu(&again), 50.0);
    assert!(again.complete());
}

#[test]
fn a_wall_meter_stands_for_everything_and_its_parts_are_shown_inside() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 0.0);
    let file = fake.path("watts");
    fs::write(&file, "100 W").unwrap();
    let mut meter = Meter::discover(Options { wall: Some(Wall::File(file.clone())), ..fake.options() });
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 60.0);
    let first = window(&mut meter, &start, 1.0);
    assert_close(first.energy.joules, 100.0);
    assert_eq!(first.energy.grade, Grade::A);
    assert_close(first.inside[0].energy.joules, 60.0);
    // The meter is unplugged: the grade falls to that of the processor's counter.
    let unplugged = meter.snapshot();
    fs::remove_file(&file).unwrap();
    fake.joules("intel-rapl:0", 130.0);
    let second = window(&mut meter, &unplugged, 2.0);
    assert_close(second.energy.joules, 70.0);
    assert_eq!(second.energy.grade, Grade::B);
}

#[test]
fn a_battery_tells_the_power_of_the_machine_only_while_nothing_else_feeds_it() {
    let fake = Fake::new();
    let supply = |name: &str, value: &str| fake.write(&format!("sys/class/power_supply/{name}"), value);
    for (name, value) in [("BAT0/type", "Battery"), ("BAT0/status", "Discharging"), ("BAT0/power_now", "20000000")] {
        supply(name, value);
    }
    supply("AC/type", "Mains");
    supply("AC/online", "0");
    supply("mouse/type", "Battery");
    supply("mouse/scope", "Device");
    supply("mouse/status", "Charging");
    let mut meter = fake.meter();
    let start = meter.snapshot();
    let on_battery = window(&mut meter, &start, 10.0);
    assert_close(on_battery.energy.joules, 200.0);
    assert_eq!(on_battery.energy.grade, Grade::C);
    let plugged = meter.snapshot();
    supply("AC/online", "1");
    assert_eq!(window(&mut meter, &plugged, 20.0).energy.grade, Grade::E);
}

#[test]
fn hwmon_sensors_count_only_where_their_meaning_is_known() {
    let fake = Fake::new();
    fake.write("sys/class/hwmon/hwmon0/name", "power_meter");
    fake.write("sys/class/hwmon/hwmon0/power1_average", "250000000");
    fake.write("sys/class/hwmon/hwmon1/name", "ina219");
    fake.write("sys/class/hwmon/hwmon1/power1_input", "9000000");
    let mut meter = fake.meter();
    let start = meter.snapshot();
    let window = window(&mut meter, &start, 2.0);
    assert_close(window.energy.joules, 500.0);
    assert_eq!(window.energy.grade, Grade::C);
}

#[test]
fn graphics_inside_a_processor_is_counted_with_its_package_and_a_board_beside_it() {
    let fake = Fake::new();
    fake.zone("intel-rapl:0", "package-0", 0.0);
    for (folder, watts) in [("hwmon0", 30), ("hwmon1", 200)] {
        fake.write(&format!("sys/class/hwmon/{folder}/name"), "amdgpu");
        fake.write(&format!("sys/class/hwmon/{folder}/power1_average"), watts * 1_000_000);
    }
    fake.write("sys/class/hwmon/hwmon0/in1_input", 800);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    fake.joules("intel-rapl:0", 50.0);
    let window = window(&mut meter, &start, 1.0);
    assert_close(window.energy.joules, 50.0 + 200.0);
}

#[test]
fn a_window_in_which_nothing_was_read_has_no_good_grade() {
    let fake = Fake::new();
    let mut meter = fake.meter();
    let start = meter.snapshot();
    let nothing = window(&mut meter, &start, 0.0);
    assert_eq!((nothing.energy.joules, nothing.energy.grade), (0.0, Grade::E));
}

#[test]
fn without_any_sensor_every_number_is_declared_and_follows_load() {
    let fake = Fake::new();
    let mut meter = fake.meter();
    assert!(!meter.measures());
    let start = meter.snapshot();
    let idle = window(&mut meter, &start, 10.0);
    let before = meter.snapshot();
    fake.busy(10.0);
    let busy = window(&mut meter, &before, 20.0);
    assert_close(busy.energy.joules, 1500.0);
    assert!(idle.energy.joules > 0.0 && idle.energy.joules < 700.0);
    assert_eq!(busy.energy.grade, Grade::E);
    assert_close(idle.shares[0].idle_j.unwrap(), idle.energy.joules);
    assert!(busy.boundary().contains("nameplate"), "{}", busy.boundary());
}

#[test]
fn a_machine_its_user_has_measured_is_grade_d() {
    let fake = Fake::new();
    let mut meter = Meter::discover(Options { calibrated_w: Some((20.0, 80.0)), ..fake.options() });
    let start = meter.snapshot();
    fake.busy(5.0);
    let window = window(&mut meter, &start, 10.0);
    assert_close(window.energy.joules, 500.0);
    assert_eq!(window.energy.grade, Grade::D);
}

#[test]
fn windows_add_up_to_the_window_around_them_whatever_sensors_do() {
    // Pseudo-random reads: fine, failing, wrapping, reset, removed.
    let mut random = 7_u64;
    let mut next = move |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    let fake = Fake::new();
    let (mut energy, mut busy) = (262_000.0, 0.0);
    fake.zone("intel-rapl:0", "package-0", energy);
    let mut meter = fake.meter();
    let start = meter.snapshot();
    let (mut last, mut sum) = (start.clone(), 0.0);
    for t in 1..=300 {
        energy = (energy + next(200) as f64) % 262_143.0;
        busy += next(100) as f64 / 100.0;
        fake.busy(busy);
        match next(10) {
            0 => fake.write("sys/class/powercap/intel-rapl:0/energy_uj", "?"),
            1 => drop(fs::remove_file(fake.path("sys/class/powercap/intel-rapl:0/energy_uj"))),
            2 => energy = 0.0,
            _ => fake.joules("intel-rapl:0", energy),
        }
        meter.poll_at(f64::from(t));
        let now = meter.snapshot();
        let window = now.since(&last);
        assert!(window.energy.joules >= 0.0);
        sum += window.energy.joules;
        last = now;
    }
    assert_close(sum, last.since(&start).energy.joules);
}

#[test]
fn an_idle_floor_is_the_mean_of_a_long_steady_time() {
    let fake = Fake::new();
    let mut meter = fake.meter();
    let mut windows = vec![];
    for t in 1..=6 {
        let before = meter.snapshot();
        windows.push(window(&mut meter, &before, f64::from(t) * 5.0));
    }
    let floor = IdleFloor::of(&windows).unwrap();
    assert!(floor.steady && floor.seconds == 30.0 && floor.grade == Grade::E, "{floor:?}");
    assert!(!IdleFloor::of(&windows[..2]).unwrap().steady);
    assert_eq!(IdleFloor::of(&[]), None);
}

#[test]
fn the_sampler_looks_while_nobody_asks() {
    let fake = Fake::new();
    let looks = Arc::new(Mutex::new(0));
    let counting = looks.clone();
    struct Counting(Arc<Mutex<u32>>);
    impl Board for Counting {
        fn name(&self) -> String {
            "counting".into()
        }
        fn energy_mj(&self) -> Result<u64, String> {
            let mut looks = self.0.lock().unwrap();
            *looks += 1;
            Ok(u64::from(*looks))
        }
        fn power_mw(&self) -> Result<u32, String> {
            Err("no".into())
        }
    }
    let meter = Meter::discover(Options { boards: Some(vec![Arc::new(Counting(counting))]), ..fake.options() });
    let sampler = Sampler::start(meter, std::time::Duration::from_millis(2));
    let before = *looks.lock().unwrap();
    while *looks.lock().unwrap() < before + 3 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let joules = sampler.snapshot().total_j;
    assert!(joules > 0.0);
}
