//! Which of several plans of an image makes it ready soonest, by simulation.
//!
//! Enters: a profile, scanned layers, a link. Leaves: the best placements, and what each plan would cost. Pure.
//! Prices of single files ([`Costs`](super::Costs)) know nothing of each other: that a prefetch is waited for, that
//! cores are busy, that a request takes too long. A simulation of the layout knows. So a plan by prices is only taken
//! where it is ready sooner than ctr-remote's plan would be: all touched files whole, in order.

use crate::layer::entry::ScannedLayer;
use crate::layer::plan::{PlanError, PlanOptions, plan_layer};
use crate::planner::estimate::layer_model;
use crate::planner::{Costs, HotPack, Placements, PlannerOptions, place};
use crate::profile::Profile;
use crate::simulate::{ImageModel, Prediction, Pulling, simulate};

/// Manifest and configuration: not known before they are written, and of no weight.
const DOCUMENT_BYTES: u64 = 8 << 10;

/// A way to lay an image out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// Nothing is prefetched.
    NoPrefetch,
    /// Every file that was touched, whole, in the order of first touch.
    WholeFiles,
    /// Of each file what its prices say.
    ByCosts,
}

/// A plan, and what is predicted of it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Which one.
    pub plan: Plan,
    /// What becomes of the files.
    pub placements: Placements,
    /// How an image of this plan becomes ready.
    pub prediction: Prediction,
}

/// All plans, and the one that is best.
#[derive(Clone, Debug)]
pub struct Choice {
    /// In the order of [`Plan`]'s variants.
    pub candidates: Vec<Candidate>,
    /// Index of the chosen one.
    pub chosen: usize,
}

impl Choice {
    /// The chosen one.
    pub fn best(&self) -> &Candidate {
        &self.candidates[self.chosen]
    }

    /// What becomes of the files.
    pub fn into_placements(mut self) -> Placements {
        self.candidates.swap_remove(self.chosen).placements
    }
}

/// Decides for all files of `profile`.
///
/// # Errors
/// [`PlanError`] names the entry that cannot be laid out.
pub fn choose(
    profile: &Profile,
    layers: &[ScannedLayer],
    options: &PlannerOptions,
    costs: &Costs,
    plan: PlanOptions,
) -> Result<Choice, PlanError> {
    let whole_files = PlannerOptions {
        hot_pack: HotPack::Off,
        ..*options
    };
    let by_costs = PlannerOptions {
        costs: Some(*costs),
        ..*options
    };
    let nothing = Placements {
        layers: vec![Default::default(); layers.len()],
        missed: Vec::new(),
    };
    let mut candidates = vec![
        (Plan::NoPrefetch, nothing),
        (Plan::WholeFiles, place(profile, layers, &whole_files)),
    ];
    if options.hot_pack != HotPack::Off {
        candidates.push((Plan::ByCosts, place(profile, layers, &by_costs)));
    }
    let candidates = candidates.into_iter().map(|(name, placements)| {
        Ok(Candidate {
            plan: name,
            prediction: predict(profile, layers, &placements, costs, plan)?,
            placements,
        })
    });
    let candidates = candidates.collect::<Result<Vec<Candidate>, PlanError>>()?;
    let chosen = best(&candidates, options.hot_pack);
    Ok(Choice { candidates, chosen })
}

/// What was asked for, or the plan by costs where that is sooner than whole files. Never no prefetch at all: the next
/// run may be on a faster link, and files that are small cost nothing.
fn best(candidates: &[Candidate], hot_pack: HotPack) -> usize {
    let of = |plan| {
        candidates
            .iter()
            .position(|candidate| candidate.plan == plan)
    };
    let whole = of(Plan::WholeFiles).unwrap_or(0);
    let Some(by_costs) = of(Plan::ByCosts) else {
        return whole;
    };
    let seconds = |index: usize| candidates[index].prediction.seconds;
    if hot_pack == HotPack::On || seconds(by_costs) < seconds(whole) {
        by_costs
    } else {
        whole
    }
}

/// How an image with these placements becomes ready.
///
/// # Errors
/// As [`choose`].
fn predict(
    profile: &Profile,
    layers: &[ScannedLayer],
    placements: &Placements,
    costs: &Costs,
    plan: PlanOptions,
) -> Result<Prediction, PlanError> {
    let models = layers
        .iter()
        .zip(&placements.layers)
        .map(|(layer, placement)| {
            let laid_out = plan_layer(layer, placement, plan)?;
            Ok(layer_model(layer, &laid_out))
        });
    let image = ImageModel {
        document_bytes: DOCUMENT_BYTES,
        layers: models.collect::<Result<_, PlanError>>()?,
    };
    let (link, constants) = (costs.link, &costs.constants);
    Ok(simulate(&image, profile, link, Pulling::Lazy, constants))
}
