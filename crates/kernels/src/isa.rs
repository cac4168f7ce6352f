//! Which instruction set the kernels use: chosen once, shown by [`Isa::name`], forced by `JEVONS_ISA`.
//!
//! Every path returns the same bits, so the choice changes time only. An [`Isa`] is a proof: only detection makes one, so
//! holding it is what allows a kernel's `unsafe` call.

use std::sync::OnceLock;

/// Proof that this CPU has an instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(pub(crate) Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Products of bf16 by `VDPBF16PS`, everything else as `Avx512`.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// Products of bf16 by tiles, everything else as `Avx512`.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// On every 64-bit Arm; the compiler uses it in plain Rust too, products name it.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// Plain Rust, on every CPU.
    pub const PORTABLE: Self = Self(Level::Portable);

    /// All that this CPU has, slowest first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)] // on processors that have one path
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Self(Level::Avx2));
                if ["f", "bw", "dq", "vl"].iter().all(|f| match *f {
                    "f" => is_x86_feature_detected!("avx512f"),
                    "bw" => is_x86_feature_detected!("avx512bw"),
                    "dq" => is_x86_feature_detected!("avx512dq"),
                    _ => is_x86_feature_detected!("avx512vl"),
                }) {
                    all.push(Self(Level::Avx512));
                    if is_x86_feature_detected!("avx512bf16") {
                        // Intel's processors do half as many of these a cycle as f32 multiply-adds do, AMD's twice as many.
                        let at = if is_made_by_amd() { all.len() } else { all.len() - 1 };
                        all.insert(at, Self(Level::Avx512Bf16));
                    }
                    if crate::gemm::amx::usable() {
                        all.push(Self(Level::Amx));
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Self(Level::Neon));
        all
    }

    /// `portable`, `avx2`, `avx512`, `avx512bf16`, `amx` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
        }
    }

    /// The instruction that multiplies bf16 on this path, where f32 multiply-adds do not.
    pub fn bf16_instruction(self) -> Option<&'static str> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Amx => Some("TDPBF16PS (AMX)"),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => Some("VDPBF16PS"),
            _ => None,
        }
    }

    /// Whether this path may look bytes up in registers (`VPERMI2B`).
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_vbmi(self) -> bool {
        !matches!(self.0, Level::Portable | Level::Avx2) && is_x86_feature_detected!("avx512vbmi")
    }

    /// The one with this name, if this CPU has it.
    ///
    /// # Errors
    /// A sentence that lists what this CPU has.
    pub fn by_name(name: &str) -> Result<Self, String> {
        let all = Self::available();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
            format!("JEVONS_ISA={name}: this CPU has {}; set one of them or leave it unset", names.join(", "))
        })
    }

    /// The fastest, or what the environment variable `JEVONS_ISA` names; decided at the first call.
    ///
    /// # Errors
    /// As [`Isa::by_name`].
    pub fn chosen() -> Result<Self, String> {
        static CHOSEN: OnceLock<Result<Isa, String>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| match std::env::var("JEVONS_ISA") {
                Ok(name) => Self::by_name(&name),
                Err(_) => Ok(*Self::available().last().expect("portable is always there")),
            })
            .clone()
    }
}

/// Whether the processor names AMD as its maker.
#[cfg(target_arch = "x86_64")]
fn is_made_by_amd() -> bool {
    static AMD: OnceLock<bool> = OnceLock::new();
    *AMD.get_or_init(|| {
        let name = std::arch::x86_64::__cpuid(0);
        [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
    })
}

/// Whether to ask ahead for weights that are read from end to end. AMD's processors see by themselves what comes, and asking takes
/// away a tenth.
pub(crate) fn prefetch_helps() -> bool {
    #[cfg(target_arch = "x86_64")]
    return !is_made_by_amd();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Compiles one plain-Rust body for every instruction set and calls the one that `isa` proves. Rust never reorders or
/// contracts floating-point operations, so the vectorised forms return the bits of the plain one.
macro_rules! multi_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments)]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match isa.0 {
                $crate::isa::Level::Portable => body($($arg),*),
                #[cfg(target_arch = "aarch64")]
                $crate::isa::Level::Neon => body($($arg),*),
                // SAFETY: `isa` proves that the CPU has AVX2 and FMA.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: `isa` proves that the CPU has AVX-512 F, BW, DQ and VL.
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Level::Avx512 | $crate::isa::Level::Avx512Bf16 | $crate::isa::Level::Amx => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use multi_isa;

/// Asks for the cache line of an address, which need not be valid. Nothing happens where there is no such instruction.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 CPU has the instruction; it reads nothing that the program sees and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_refused_with_the_list_of_what_there_is() {
        let error = Isa::by_name("neon9").unwrap_err();
        assert!(error.contains("portable"), "{error}");
        assert_eq!(Isa::by_name("portable"), Ok(Isa::PORTABLE));
    }
}
