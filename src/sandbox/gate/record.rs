//! What the gate journals of a run. A replay journals nothing: its journal is there.

use crate::journal::{Answered, Asked, Began, Entry, VERSION, now_us};
use crate::machine::CallError;
use crate::sandbox::gate::{Gate, RunInputs};

impl Gate {
    /// Learns what secrets there are, and journals what the run begins with. Answers what the module's random numbers are made from.
    pub(crate) async fn begin(&mut self) -> String {
        if let Some(tape) = &self.tape {
            return tape.seed();
        }
        let secrets = self.know_secrets().await;
        let seed = hex::encode(rand::random::<[u8; 32]>());
        let RunInputs { registration, policy, bundles, .. } = &self.inputs;
        let (mut registration, mut settings) = (registration.clone(), policy.settings.clone());
        if !self.redactor.is_empty() {
            let cut = |text: &mut String| *text = self.redactor.text(std::mem::take(text));
            settings.values_mut().chain(registration.attributes.values_mut()).chain(&mut registration.image).for_each(cut);
        }
        let began = Began {
            at_us: self.clock.shown_us(),
            version: VERSION,
            seed: seed.clone(),
            registration,
            settings,
            limits: policy.limits,
            bundles: bundles.iter().map(|(name, bundle)| (name.to_string(), bundle.version.to_string())).collect(),
            secrets,
        };
        self.inputs.recorder.entry(&Entry::Began(Box::new(began)), Vec::new());
        seed
    }

    /// Journals a call.
    pub(super) fn record_asked(&self, asked: &Asked) {
        if self.tape.is_none() {
            let asked = asked.clone();
            let asked = if self.redactor.is_empty() { asked } else { asked.with_cut(|text| self.redactor.text(text)) };
            self.inputs.recorder.entry(&Entry::Asked { at_us: now_us(), asked }, Vec::new());
        }
    }

    /// Journals an answer; the module's clock is at its time then.
    pub(super) fn record_answered(&mut self, refused: bool, answered: Result<Answered, CallError>) {
        let at_us = self.clock.reach(self.tape.as_ref().map_or_else(now_us, |tape| tape.answered_us()));
        let contents = self.keeper.take();
        if self.tape.is_none() {
            self.inputs.recorder.entry(&Entry::Answered { at_us, refused, answered }, contents);
        }
    }
}
