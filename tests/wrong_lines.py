"""Wrong lines of source, and the tests that notice them: ``python tests/wrong_lines.py [--only N ...] [--jobs N]``.

A test is worth its time if it fails when a line is wrong. ``WRONG_LINES`` is a list of lines that could be wrong, some
of them for each room. For each one, this tool copies the library to a temporary folder, puts the wrong line in the
place of the right one, and runs the tests that are named beside it. It prints whether a test failed.

Run it before and after tests are removed or made faster: what was noticed before has to be noticed after. When you
move a line of the list, move it here too, since ``right`` has to occur exactly once in its file.

pytest does not run this file.
"""

import argparse
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("torch", "pyro", "scipy.stats", "sklearn.mixture", "pandas", "typer", "pytest")  # imported once for all runs
LOG = "pytest.log"
OUTCOMES = {0: "NOT NOTICED", 1: "noticed"}  # by the exit code of pytest


class WrongLine(NamedTuple):
    """A line that could be wrong.

    Attributes:
        path: The file, from the root of the repository.
        right: The right code, which occurs exactly once in the file.
        wrong: What stands in its place.
        noticed_by: The tests that notice it, as pytest takes them.
    """

    path: str
    right: str
    wrong: str
    noticed_by: tuple[str, ...]


MODELS = [
    WrongLine(
        "models/distributions.py",
        "softplus(self.logits) + log_normalizer(self.logits)",
        "softplus(self.logits)",
        ("tests/test_likelihoods.py::test_probability_is_one_in_total",),
    ),
    WrongLine(
        "models/distributions.py",
        "half = 0.5 / (self.levels - 1)",
        "half = 0.5 / self.levels",
        ("tests/test_likelihoods.py::test_probability_is_one_in_total",),
    ),
    WrongLine(
        "models/distributions.py",
        "correction / (24 * (self.levels - 1) ** 2)",
        "correction / (12 * (self.levels - 1) ** 2)",
        ("tests/test_likelihoods.py::test_the_mean_of_a_discretised_law_is_the_sum_over_its_levels",),
    ),
    WrongLine(
        "models/distributions.py",
        "u = torch.rand(shape, dtype=self.logits.dtype",
        "u = 0.5 + 0.5 * torch.rand(shape, dtype=self.logits.dtype",
        ("tests/test_likelihoods.py::test_draws_of_the_continuous_bernoulli_have_its_distribution",),
    ),
    WrongLine(
        "models/likelihoods.py",
        "dist.Laplace(loc, self.scale)",
        "dist.Laplace(loc, self.scale.square())",
        ("tests/test_likelihoods.py::test_log_prob_is_that_of_another_route",),
    ),
    WrongLine(
        "models/likelihoods.py",
        "(x - loc).square().mean(), 1 / self.draws",
        "(x - loc.mean(0)).square().mean(), 1 / self.draws",
        (
            "tests/test_likelihoods.py::test_the_optimal_variance_is_the_expected_squared_error_and_not_that_of_the_mean",
        ),
    ),
    WrongLine(
        "models/likelihoods.py",
        "lerp(self.variance, len(x) / self.rows)",
        "lerp(self.variance, self.momentum)",
        ("tests/test_likelihoods.py::test_in_the_optimal_variance_every_row_counts_alike",),
    ),
    WrongLine(
        "models/likelihoods.py",
        "in_range(log_factor)",
        "log_factor",
        ("tests/test_bounds.py::test_data_far_out_have_finite_bounds_and_the_lower_the_farther",),
    ),
    WrongLine(
        "models/latent_variable.py",
        "learns = self.training and self.likelihood.training",
        "learns = True",
        ("tests/test_likelihoods.py::test_no_datum_moves_the_optimal_scale_in_eval_mode",),
    ),
    WrongLine(
        "models/latent_variable.py",
        "if not penalty.per_datum]",
        "if penalty.per_datum]",
        ("tests/test_penalties.py::test_the_weight_prior_is_paid_once_a_data_set_whatever_the_batch",),
    ),
    WrongLine(
        "models/priors.py",
        "tril.diagonal(dim1=-2, dim2=-1).log().diag_embed()",
        "tril.diagonal(dim1=-2, dim2=-1).diag_embed()",
        ("tests/test_pairs.py::test_a_mixture_of_given_moments_has_them_and_is_held_fixed",),
    ),
    WrongLine(
        "models/penalties.py",
        "- diagonal) / (n * (n - 1))",
        "- diagonal) / n**2",
        ("tests/test_penalties.py::test_mmd_is_the_double_loop_without_the_diagonal",),
    ),
    WrongLine(
        "models/penalties.py",
        "count * math.log(self.scale * math.sqrt(2 * math.pi))",
        "count * math.log(self.scale)",
        ("tests/test_penalties.py::test_the_weight_prior_is_the_sum_of_normal_log_densities",),
    ),
    WrongLine(
        "models/scale.py",
        "return -self.width.log().sum()",
        "return self.width.log().sum()",
        ("tests/test_bounds.py::test_units_of_each_coordinate_count_by_their_own_width",),
    ),
    WrongLine(
        "models/schedules.py",
        "step >= at * total",
        "step > at * total",
        ("tests/test_objectives.py::test_schedules_have_their_values_exactly",),
    ),
    WrongLine(
        "models/linear_gaussian.py",
        "+ d * self.sigma.log()",
        "+ self.sigma.log()",
        ("tests/test_linear_gaussian.py::test_the_bound_is_tight_at_the_posterior",),
    ),
    WrongLine(
        "models/linear_gaussian.py",
        "variance = eigenvalues[z_dim:].mean()",
        "variance = eigenvalues[z_dim:].sum()",
        ("tests/test_linear_gaussian.py::test_maximum_likelihood_is_a_stationary_point_of_the_log_evidence",),
    ),
    WrongLine(
        "models/likelihoods.py",
        "dist.Categorical(logits=torch.stack(logits, -1))",
        "dist.Categorical(logits=torch.stack(logits[::-1], -1))",
        ("tests/test_categories.py::test_the_log_density_is_a_softmax_by_hand",),
    ),
    WrongLine(
        "models/likelihoods.py",
        "law.mode.to(like) if is_nominal(law) else",
        "law.base_dist.probs.argmin(-1).to(like) if is_nominal(law) else",
        ("tests/test_categories.py::test_samples_are_codes_and_their_means_are_modes",),
    ),
    WrongLine(
        "models/networks.py",
        "(x.unsqueeze(1) == codes).to(x)",
        "(x.unsqueeze(1) >= codes).to(x)",
        ("tests/test_categories.py::test_one_hot_is_exact",),
    ),
    WrongLine(
        "models/outputs.py",
        "decoded.unbind(-1 - len(x_shape))",
        "decoded.unbind(-2)",
        ("tests/test_pairs.py::test_outputs_of_a_decoder_come_one_after_the_other",),
    ),
    WrongLine(
        "models/derivations.py",
        "log_p = self._allowed(self.logits, self.tables.left[rules]).log_softmax(-1)",
        "log_p = self._allowed(self.logits, self.tables.left[rules].roll(1, -1)).log_softmax(-1)",
        ("tests/test_grammar.py::test_the_probabilities_of_all_sequences_sum_to_one",),
    ),
    WrongLine(
        "models/derivations.py",
        "for one in reversed(rule.right) if one in place]",
        "for one in rule.right if one in place]",
        ("tests/test_grammar.py::test_draws_are_sequences_with_their_probabilities",),
    ),
    WrongLine(
        "models/derivations.py",
        "is_inside.append(is_inside[-1] & fits)",
        "is_inside.append(fits)",
        ("tests/test_grammar.py::test_the_support_is_the_set_of_derivations",),
    ),
    WrongLine(
        "models/networks.py",
        "states, _ = self.recurrent(inputs)",
        "states, _ = self.recurrent(inputs.flip(1))",
        ("tests/test_structured.py::test_a_place_of_the_decoder_depends_on_the_inputs_before_it_alone",),
    ),
    WrongLine(
        "models/grammar.py",
        "return min(found, default=None)",
        "return max(found, default=None)",
        ("tests/test_grammar.py::test_every_derivation_is_parsed_from_its_text",),
    ),
    WrongLine(
        "models/grammar.py",
        "code = codes[_one_of([chances[self._inside(code)][size - 1] for code in codes], generator)]",
        "code = generator.choice([code for code in codes if chances[self._inside(code)][size - 1]])",
        ("tests/test_grammar.py::test_draws_have_the_probabilities_of_uniform_rules_given_their_length",),
    ),
]

GUIDES = [
    WrongLine(
        "models/half.py",
        "inside + ROOM * ((log_scale - inside) / ROOM).tanh()",
        "log_scale",
        ("tests/test_bounds.py::test_a_log_scale_is_bent_outside_the_ordinary_range_alone",),
    ),
    WrongLine(
        "guides/mean_field.py",
        "in_range(log_scale).exp()",
        "in_range(log_scale / 2).exp()",
        ("tests/test_verification.py::test_the_mean_field_guide_is_the_best_of_its_family",),
    ),
    WrongLine(
        "guides/constant_variance.py",
        "dist.Normal(loc, scale)",
        "dist.Normal(loc, scale.square())",
        ("tests/test_objectives.py::test_a_guide_of_one_spread_has_its_kl_and_its_bound",),
    ),
    WrongLine(
        "guides/full_rank.py",
        "log_diagonal.exp().diag_embed()",
        "(2 * log_diagonal).exp().diag_embed()",
        ("tests/test_linear_gaussian.py::test_the_posterior_drawn_by_the_full_rank_guide_has_its_covariance",),
    ),
    WrongLine(
        "models/rounding.py",
        "<= READABLE",
        "<= 1e9 * READABLE",
        ("tests/test_bounds.py::test_no_bound_is_above_the_evidence_far_out",),
    ),
    WrongLine(
        "models/rounding.py",
        "loc.detach().abs() / READABLE",
        "loc.detach().abs() * READABLE**4",
        ("tests/test_bounds.py::test_no_bound_is_above_its_limit_where_codes_are_rounded",),
    ),
    WrongLine(
        "guides/guide.py",
        "subsample=x), self.weighted():",
        "subsample=x):",
        ("tests/test_objectives.py::test_the_kl_weight_acts_on_both_sides",),
    ),
    WrongLine(
        "guides/laplace.py",
        "columns, 1 / noise, columns)",
        "columns, 1 / noise.sqrt(), columns)",
        ("tests/test_laplace.py::test_one_draw_is_exact_where_the_posterior_is_gaussian",),
    ),
    WrongLine(
        "guides/laplace.py",
        "precision_matrix=precision / self.inflation",
        "precision_matrix=precision * self.inflation",
        ("tests/test_laplace.py::test_the_proposal_is_twice_as_wide_as_the_posterior_unless_told_otherwise",),
    ),
]

DATA = [
    WrongLine(
        "ppl_vae/data/units.py",
        "Scale(x_shape, low, high - low)",
        "Scale(x_shape, low, high - low + 1)",
        ("tests/test_data.py::test_bytes_are_images_of_known_span_with_channels_first",),
    ),
    WrongLine(
        "ppl_vae/data/units.py",
        "(squares / count).sqrt()",
        "(squares / (count - 1)).sqrt()",
        ("tests/test_data.py::test_standardize_is_that_of_scikit_learn",),
    ),
    WrongLine(
        "ppl_vae/data/units.py",
        "SPACINGS * spacing",
        "spacing",
        ("tests/test_data.py::test_a_column_without_its_digits_is_named",),
    ),
    WrongLine(
        "ppl_vae/data/prepared.py",
        "fit_scale(scale, raw,",
        "fit_scale(scale, raw._replace(x=torch.cat([raw.x, test])),",
        ("tests/test_data.py::test_held_out_rows_have_no_say_in_the_scale",),
    ),
    WrongLine(
        "ppl_vae/data/splits.py",
        "labels=_labels_of(raw.labels, held_out)",
        "labels=_labels_of(raw.labels, kept)",
        ("tests/test_data.py::test_labels_go_with_their_rows",),
    ),
    WrongLine(
        "ppl_vae/data/splits.py",
        "kept, held_out = torch.arange(rows).split([rows - count, count])",
        "held_out, kept = torch.arange(rows).split([count, rows - count])",
        ("tests/test_data.py::test_a_tail_holds_out_the_last_rows",),
    ),
    WrongLine(
        "ppl_vae/data/data_set.py",
        "(x > 0.5)",
        "(x > 0.0)",
        ("tests/test_data.py::test_a_threshold_is_at_one_half",),
    ),
    WrongLine(
        "ppl_vae/data/arrays.py",
        "if not bool(x.isfinite().all()):",
        "if bool(x.isnan().any()):",
        ("tests/test_data.py::test_no_number_that_is_not_finite_gets_in",),
    ),
]

ELBO = [
    WrongLine(
        "ppl_vae/elbo/importance.py",
        "log_weight.logsumexp(dim) - math.log(log_weight.shape[dim])",
        "log_weight.logsumexp(dim)",
        ("tests/test_elbo.py::test_a_value_and_its_gradients_are_those_of_the_formula_draw_by_draw",),
    ),
    WrongLine(
        "ppl_vae/elbo/importance.py",
        "log_mean(order * log_weight) / order",
        "log_mean(order * log_weight)",
        ("tests/test_elbo.py::test_a_value_and_its_gradients_are_those_of_the_formula_draw_by_draw",),
    ),
    WrongLine(
        "ppl_vae/elbo/importance.py",
        "log_weight.unflatten(0, (-1, groups))",
        "log_weight.unflatten(0, (groups, -1))",
        ("tests/test_elbo.py::test_a_value_and_its_gradients_are_those_of_the_formula_draw_by_draw",),
    ),
    WrongLine(
        "ppl_vae/elbo/path.py",
        "Weights(v, v.square())",
        "Weights(v, v.clone())",
        ("tests/test_elbo.py::test_a_value_and_its_gradients_are_those_of_the_formula_draw_by_draw",),
    ),
    WrongLine(
        "ppl_vae/elbo/path.py",
        "latent.total(detach(latent.q).log_prob(latent.z))",
        "latent.total(latent.q.log_prob(latent.z))",
        ("tests/test_elbo.py::test_a_value_and_its_gradients_are_those_of_the_formula_draw_by_draw",),
    ),
    WrongLine(
        "ppl_vae/elbo/path.py",
        "surrogate = surrogate - (score",
        "surrogate = surrogate + (score",
        ("tests/test_elbo.py::test_a_value_and_its_gradients_are_those_of_the_formula_draw_by_draw",),
    ),
    WrongLine(
        "ppl_vae/elbo/path.py",
        ".flatten(0, 1) / self.groups",
        ".flatten(0, 1)",
        ("tests/test_elbo.py::test_piwae_takes_its_model_from_iwae_and_its_guide_from_miwae",),
    ),
    WrongLine(
        "ppl_vae/elbo/dip.py",
        "centred = mean - mean.mean(0)",
        "centred = mean - mean.mean(-1, keepdim=True)",
        ("tests/test_dip.py::test_the_covariance_is_that_of_a_double_loop_and_of_numpy",),
    ),
    WrongLine(
        "ppl_vae/elbo/dip.py",
        "centred.mT @ centred / len(mean)",
        "centred.mT @ centred",
        ("tests/test_dip.py::test_the_covariance_is_that_of_a_double_loop_and_of_numpy",),
    ),
    WrongLine(
        "ppl_vae/elbo/dip.py",
        "return q.variance.reshape",
        "return q.variance.square().reshape",
        ("tests/test_dip.py::test_the_second_kind_is_the_covariance_of_draws_from_all_guides_together",),
    ),
    WrongLine(
        "models/second_stage.py",
        "prior.log_weight(z.detach())",
        "prior.log_weight(z)",
        ("tests/test_second_stage.py::test_the_first_vae_gets_exactly_the_gradients_of_sigma_vae",),
    ),
    WrongLine(
        "models/second_stage.py",
        ".log_prob(z) - q.log_prob(u)",
        ".log_prob(z)",
        ("tests/test_second_stage.py::test_the_exponential_of_log_prob_has_the_density_as_its_mean",),
    ),
    WrongLine(
        "models/second_stage.py",
        "self.stage.log_weight(value.expand(shape))",
        "self.stage.log_weight(value)",
        ("tests/test_second_stage.py::test_every_code_has_a_u_of_its_own",),
    ),
    WrongLine(
        "ppl_vae/elbo/kl.py",
        "clamp_min(self.floor)",
        "clamp_max(self.floor)",
        ("tests/test_elbo.py::test_free_bits_hold_a_floor_under_the_mean_of_a_batch",),
    ),
    WrongLine(
        "ppl_vae/elbo/kl.py",
        "self.beta * (reading.prior - reading.guide)",
        "self.beta * reading.prior - reading.guide",
        ("tests/test_elbo.py::test_beta_is_the_kl_weight_of_the_pair_and_multiplies_it",),
    ),
    WrongLine(
        "ppl_vae/elbo/per_datum.py",
        "reading.scale * self.objective(reading).sum() + reading.penalty",
        "reading.scale * (self.objective(reading).sum() + reading.penalty)",
        ("tests/test_elbo.py::test_a_prior_on_weights_is_counted_once",),
    ),
    WrongLine(
        "ppl_vae/elbo/per_datum.py",
        "if is_weighted(weight):",
        "if False:",
        ("tests/test_elbo.py::test_a_pair_that_an_estimator_is_not_meant_for_is_refused",),
    ),
    WrongLine(
        "ppl_vae/elbo/reading.py",
        "sum(factors, 0.0) / num_particles",
        "sum(factors, 0.0)",
        ("tests/test_elbo.py::test_a_penalty_of_each_datum_is_averaged_over_draws_and_so_is_its_gradient",),
    ),
    WrongLine(
        "ppl_vae/elbo/pathwise.py",
        "return total / self.num_particles",
        "return total",
        ("tests/test_objectives.py::test_the_pathwise_estimate_is_that_of_pyro_for_every_guide",),
    ),
]

SVI = [
    WrongLine(
        "ppl_vae/svi/adam.py",
        'beta2=group["betas"][1]',
        'beta2=group["betas"][0]',
        ("tests/test_svi.py::test_our_adam_is_that_of_torch_and_loads_its_state",),
    ),
    WrongLine(
        "ppl_vae/svi/shortening.py",
        "aten.sub.Tensor: 0,",
        "aten.sub.Tensor: 1,",
        ("tests/test_svi.py::test_training_from_a_graph_is_training_by_hand_to_the_last_bit",),
    ),
    WrongLine(
        "ppl_vae/svi/shortening.py",
        "return draws or any(",
        "return any(",
        ("tests/test_svi.py::test_a_draw_that_nobody_reads_still_moves_the_stream",),
    ),
    WrongLine(
        "ppl_vae/svi/proof.py",
        "_repeats(two, outputs, after, tolerance)",
        "True",
        ("tests/test_svi.py::test_a_wrong_rewriting_is_seen_before_it_is_used",),
    ),
    WrongLine(
        "ppl_vae/svi/capture.py",
        "set_stream_states(self.start)",
        "pass",
        ("tests/test_svi.py::test_training_from_a_graph_is_training_by_hand_to_the_last_bit",),
    ),
    WrongLine(
        "ppl_vae/svi/step.py",
        "if not (same and self._agree(",
        "if not (same or self._agree(",
        ("tests/test_svi.py::test_a_graph_that_has_become_stale_raises_at_the_next_proof_and_names_the_last",),
    ),
    WrongLine(
        "ppl_vae/svi/step.py",
        "min(2 * graph.calls, graph.calls + APART)",
        "2 * graph.calls",
        ("tests/test_svi.py::test_proofs_come_at_growing_intervals_and_no_further_apart_than_500_calls",),
    ),
    WrongLine(
        "ppl_vae/svi/precision.py",
        "return forward(x).to(x.dtype)",
        "return forward(x)",
        ("tests/test_training.py::test_a_network_in_bf16_returns_the_type_that_it_was_given",),
    ),
]

PAIR = [
    WrongLine(
        "ppl_vae/variant.py",
        "torch.zeros_like(scale) if variant.support.is_discrete else scale",
        "scale",
        ("tests/test_bounds.py::test_a_mass_has_no_units",),
    ),
    WrongLine(
        "ppl_vae/variant.py",
        "set_mode(variant, training=training)",
        "set_mode(variant, training=True)",
        ("tests/test_bounds.py::test_bounds_are_of_eval_mode_whatever_mode_the_pair_is_in",),
    ),
    WrongLine(
        "ppl_vae/variant.py",
        "            module.eval()",
        "            pass",
        ("tests/test_training.py::test_a_frozen_part_stays_as_it_is",),
    ),
    WrongLine(
        "ppl_vae/coding.py",
        "x_given_z(rows).sample()",
        "x_given_z(rows).mean",
        ("tests/test_diagnostics.py::test_the_model_s_own_data_pass_in_every_statistic",),
    ),
    WrongLine(
        "ppl_vae/snapshot.py",
        "name: tensor.clone()",
        "name: tensor",
        ("tests/test_preflight.py::test_the_door_leaves_everything_as_it_was",),
    ),
    WrongLine(
        "ppl_vae/noise.py",
        "return math.sqrt(total / len(y))",
        "return total / len(y)",
        ("tests/test_evaluation.py::test_sigma_is_the_root_mean_square_of_the_likelihoods_scale",),
    ),
    WrongLine(
        "ppl_vae/catalogue.py",
        '"penalties": penalties, "kl_weight": Masked()}',
        '"penalties": penalties}',
        ("tests/test_readme.py::test_the_table_of_the_readme_is_the_catalogue",),
    ),
    WrongLine(
        "ppl_vae/catalogue.py",
        "cyclical(end=beta)",
        "cyclical()",
        ("tests/test_objectives.py::test_an_annealed_kl_weight_follows_its_schedule_on_both_sides",),
    ),
    WrongLine(
        "ppl_vae/conversion.py",
        "math.log(SPREAD)",
        "SPREAD",
        ("tests/test_conversion.py::test_an_autoencoder_becomes_a_vae_that_reconstructs_alike",),
    ),
    WrongLine(
        "ppl_vae/recipes.py",
        "found[name] = described(value)",
        "found[name] = described(parameter.default)",
        ("tests/test_checkpoint.py::test_parts_of_the_library_come_back_by_name",),
    ),
]

CHECKPOINT = [
    WrongLine(
        "ppl_vae/checkpoint.py",
        "module.to(dtype)",
        "pass",
        ("tests/test_checkpoint.py::test_every_variant_comes_back_bit_by_bit",),
    ),
    WrongLine(
        "ppl_vae/checkpoint.py",
        "module.eval()",
        "pass",
        ("tests/test_checkpoint.py::test_every_variant_comes_back_bit_by_bit",),
    ),
    WrongLine(
        "ppl_vae/checkpoint.py",
        "if got != shape:",
        "if len(got) != len(shape):",
        ("tests/test_checkpoint.py::test_tensors_that_do_not_match_are_named",),
    ),
    WrongLine(
        "ppl_vae/files.py",
        "                os.replace(earlier, path)",
        "                pass",
        ("tests/test_checkpoint.py::test_a_failed_save_leaves_what_was_there",),
    ),
    WrongLine(
        "ppl_vae/streams.py",
        "seed * 1_000_003 + index",
        "seed + index",
        ("tests/test_diagnostics.py::test_neighbouring_seeds_share_no_replicate",),
    ),
    WrongLine(
        "ppl_vae/estimate.py",
        "error=2 / (len(values) + 4)",
        "error=0.0",
        ("tests/test_diagnostics.py::test_the_error_of_a_share_is_not_zero",),
    ),
]

CONTRACTS = [
    WrongLine(
        "ppl_vae/contracts/sites.py",
        'if effects["model"] != effects["guide"]:',
        "if False:",
        ("tests/test_preflight.py::test_each_way_to_break_a_pair_has_one_line",),
    ),
    WrongLine(
        "ppl_vae/contracts/widths.py",
        "_slope(run.variant, scale) < ALIVE",
        "_slope(run.variant, scale) < 0",
        ("tests/test_preflight.py::test_each_way_to_break_a_pair_has_one_line",),
    ),
    WrongLine(
        "ppl_vae/contracts/widths.py",
        "spread(run.y) * math.sqrt(run.y[0].numel())",
        "spread(run.y)",
        ("tests/test_preflight.py::test_a_scale_is_too_wide_above_the_root_of_the_total_variance",),
    ),
    WrongLine(
        "ppl_vae/contracts/conformance.py",
        "        before.restore(variant)",
        "        pass",
        ("tests/test_preflight.py::test_the_door_leaves_everything_as_it_was",),
    ),
    WrongLine(
        "ppl_vae/contracts/trials.py",
        "math.isclose(found, expected, rel_tol=CLOSE, abs_tol=CLOSE)",
        "math.isclose(found, expected, rel_tol=10.0)",
        ("tests/test_check.py::test_a_broken_part_is_named_with_the_remedy",),
    ),
    WrongLine(
        "ppl_vae/contracts/trials.py",
        "if not _same(p_together[:count], p_apart):",
        "if False:",
        ("tests/test_check.py::test_a_broken_part_is_named_with_the_remedy",),
    ),
    WrongLine(
        "ppl_vae/contracts/support.py",
        "~log_density.isfinite().all(-1)",
        "log_density.isnan().any(-1)",
        ("tests/test_data.py::test_a_datum_on_the_edge_of_the_support_is_named",),
    ),
]

EVALUATION = [
    WrongLine(
        "ppl_vae/evaluation/pareto.py",
        "(1 / effective_sample_size(log_weights) - 1 / draws)",
        "(1 / effective_sample_size(log_weights))",
        ("tests/test_bounds.py::test_the_errors_are_the_spread_over_repetitions",),
    ),
    WrongLine(
        "ppl_vae/evaluation/lower_bounds.py",
        "likelihood=scored.likelihood + shift",
        "likelihood=scored.likelihood",
        ("tests/test_bounds.py::test_data_ten_times_as_large_lose_d_log_ten_and_nothing_else",),
    ),
    WrongLine(
        "ppl_vae/evaluation/lower_bounds.py",
        "score = found.likelihood + found.prior",
        "score = found.likelihood",
        ("tests/test_bounds.py::test_a_point_mass_is_scored_by_the_log_joint_of_each_datum",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "between = t if upwards else t - 1",
        "between = t",
        ("tests/test_annealing.py::test_the_mean_reciprocal_of_a_reverse_weight_is_that_of_the_evidence",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "(start.square() - momentum.square())",
        "(momentum.square() - start.square())",
        ("tests/test_annealing.py::test_a_move_leaves_its_density_as_it_is",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "-log_mean(-self.reverse.log_weight)",
        "log_mean(-self.reverse.log_weight)",
        ("tests/test_annealing.py::test_from_the_posterior_both_sides_of_a_bracket_are_the_evidence",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "log_ratio > torch.rand_like(log_ratio).log()",
        "log_ratio > -math.inf",
        ("tests/test_annealing.py::test_a_move_leaves_its_density_as_it_is",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "log_density(there) - log_density(state) + kinetic",
        "log_density(there) - log_density(state)",
        ("tests/test_annealing.py::test_a_move_leaves_its_density_as_it_is",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "(1 - beta) * state.log_q + beta * state.log_p",
        "state.log_p",
        ("tests/test_annealing.py::test_a_move_leaves_its_density_as_it_is",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "zip(there, state, strict=True)",
        "zip(state, there, strict=True)",
        ("tests/test_annealing.py::test_a_move_leaves_its_density_as_it_is",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "if pilot",
        "if True",
        ("tests/test_annealing.py::test_the_mean_weight_is_the_evidence_for_any_number_of_steps",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "self.move(state, between)",
        "self.move(state, between + 1)",
        ("tests/test_annealing.py::test_the_mean_weight_is_the_evidence_for_any_number_of_steps",),
    ),
    WrongLine(
        "ppl_vae/evaluation/annealing.py",
        "self.betas[t] - self.betas[t - 1]",
        "self.betas[min(t + 1, last)] - self.betas[t]",
        ("tests/test_annealing.py::test_the_mean_weight_is_the_evidence_for_any_number_of_steps",),
    ),
    WrongLine(
        "ppl_vae/evaluation/kl_terms.py",
        "(q.log_prob(z) - prior.log_prob(z)).mean(0)",
        "(prior.log_prob(z) - q.log_prob(z)).mean(0)",
        ("tests/test_evaluation.py::test_a_sampled_kl_agrees_with_the_truth",),
    ),
    WrongLine(
        "ppl_vae/evaluation/distances.py",
        "cov_b.trace() - 2 * cross.sum()",
        "cov_b.trace() - cross.sum()",
        ("tests/test_evaluation.py::test_the_frechet_distance_is_scipys",),
    ),
    WrongLine(
        "ppl_vae/evaluation/distances.py",
        "(1.5 * whole - 0.25 * halves)",
        "whole",
        ("tests/test_evaluation.py::test_the_error_of_the_frechet_distance_is_its_standard_deviation_over_samples",),
    ),
    WrongLine(
        "ppl_vae/evaluation/metrics.py",
        "-1 / (subject.y[0].numel() * math.log(2))",
        "-1 / subject.y[0].numel()",
        ("tests/test_evaluation.py::test_bits_of_a_mass_are_minus_the_bound_over_d_log_two",),
    ),
    WrongLine(
        "ppl_vae/evaluation/metrics.py",
        "square.error / (2 * max(root, 1e-300))",
        "square.error / max(root, 1e-300)",
        ("tests/test_evaluation.py::test_the_rmse_is_numpys_in_the_models_units",),
    ),
    WrongLine(
        "ppl_vae/evaluation/interpolation.py",
        "index - first * (first - 1) // 2",
        "index - first * (first + 1) // 2",
        ("tests/test_evaluation.py::test_midpoints_are_of_distinct_pairs_of_distinct_data",),
    ),
    WrongLine(
        "ppl_vae/evaluation/ex_post.py",
        "* width[:, None] * width",
        "* width",
        ("tests/test_ex_post.py::test_its_log_density_is_scikit_learns_with_the_jacobian_of_standardising",),
    ),
    WrongLine(
        "ppl_vae/evaluation/ex_post.py",
        "posterior(y).sample()",
        "posterior(y).mean",
        ("tests/test_ex_post.py::test_it_is_fitted_on_draws_whose_covariance_is_the_identity_at_the_optimum",),
    ),
    WrongLine(
        "ppl_vae/evaluation/ex_post.py",
        "z[order[: len(z) // 5]], z[order[len(z) // 5 :]]",
        "z, z",
        ("tests/test_ex_post.py::test_clusters_are_found_with_their_shares",),
    ),
    WrongLine(
        "ppl_vae/evaluation/inference_gaps.py",
        "influence=refined.softmax(0) * num_particles",
        "influence=0.0",
        ("tests/test_gaps.py::test_errors_are_those_of_repetition",),
    ),
    WrongLine(
        "ppl_vae/evaluation/inference_gaps.py",
        "own.append(_log_weights(variant, rows, start, num_particles, noise))",
        "own.append(_log_weights(variant, rows, start, num_particles, noise + 1))",
        ("tests/test_gaps.py::test_draws_common_to_both_bounds_make_the_amortisation_gap_exact",),
    ),
    WrongLine(
        "ppl_vae/evaluation/stacking.py",
        "differences.mean(0), differences.mean(1)",
        "differences.mean(1), differences.mean(0)",
        ("tests/test_stacking.py::test_the_two_errors_answer_two_questions",),
    ),
    WrongLine(
        "ppl_vae/evaluation/stacking.py",
        "slope - 1 + target / weights",
        "slope + target / weights",
        ("tests/test_stacking.py::test_of_disjoint_supports_weights_are_the_proportions",),
    ),
    WrongLine(
        "ppl_vae/evaluation/pareto.py",
        "(count * shape + 5) / (count + 10)",
        "shape",
        ("tests/test_psis.py::test_weights_and_tail_are_those_of_arviz",),
    ),
    WrongLine(
        "ppl_vae/evaluation/pareto.py",
        "length = math.ceil(",
        "length = math.floor(",
        ("tests/test_psis.py::test_twenty_draws_have_no_tail_to_fit",),
    ),
]

TRAINING = [
    WrongLine(
        "ppl_vae/training/loop.py",
        "self.take_step(y) * len(y)",
        "self.take_step(y) * self.batches.batch_size",
        ("tests/test_training.py::test_the_loss_of_an_epoch_weighs_every_row_alike",),
    ),
    WrongLine(
        "ppl_vae/training/loop.py",
        "return len(y) / self.batches.batch_size",
        "return 1.0",
        ("tests/test_training.py::test_an_epoch_of_gradients_is_the_gradient_of_the_whole_set",),
    ),
    WrongLine(
        "ppl_vae/training/loop.py",
        'score < self.rows[self.best_epoch - 1]["held_out_loss"]',
        'score > self.rows[self.best_epoch - 1]["held_out_loss"]',
        ("tests/test_training.py::test_the_weights_kept_are_those_of_the_best_held_out_epoch",),
    ),
    WrongLine(
        "ppl_vae/training/loop.py",
        '"loss": loss - shift',
        '"loss": loss + shift',
        (
            "tests/test_training.py::test_multiplying_the_data_by_ten_shifts_the_bound_by_d_log_ten_and_changes_nothing_else",
        ),
    ),
    WrongLine(
        "ppl_vae/training/options.py",
        "0.5 * (1.0 + math.cos(math.pi * done))",
        "math.cos(0.5 * math.pi * done)",
        ("tests/test_training.py::test_the_learning_rate_follows_its_schedule",),
    ),
    WrongLine(
        "ppl_vae/training/divergence.py",
        "[losses.isfinite().all(), *weights]",
        "[losses.isfinite().all()]",
        ("tests/test_training.py::test_weights_that_overflow_after_a_finite_loss_are_caught",),
    ),
    WrongLine(
        "ppl_vae/training/batches.py",
        "if len(batch) == 1:",
        "if len(batch) == 0:",
        ("tests/test_training.py::test_a_lone_last_row_joins_the_batch_before_under_batch_norm",),
    ),
    WrongLine(
        "ppl_vae/training/receipts.py",
        "weight**power * scale",
        "weight * scale",
        ("tests/test_training.py::test_a_kl_weight_is_equivalent_to_another_scale_where_the_scale_is_fixed",),
    ),
    WrongLine(
        "ppl_vae/training/receipts.py",
        'sign * float(site["log_prob_sum"]) / size',
        'float(site["log_prob_sum"]) / size',
        ("tests/test_training.py::test_the_terms_of_the_receipt_add_up_to_its_loss",),
    ),
]

VERIFICATION = [
    WrongLine(
        "ppl_vae/verification/targets.py",
        "-scale * bound.mean(0).sum()",
        "-bound.mean(0).sum()",
        ("tests/test_verification.py::test_the_truth_of_a_linear_gaussian_pair_is_its_closed_form",),
    ),
    WrongLine(
        "ppl_vae/verification/verdict.py",
        "torch.hypot(standard_error(samples), expected_error)",
        "torch.hypot(samples.std(0), expected_error)",
        ("tests/test_verification.py::test_a_z_score_is_the_largest_of_a_coordinate_or_along_the_truth",),
    ),
    WrongLine(
        "ppl_vae/verification/verdict.py",
        "(3 * seed + number",
        "(seed + number",
        ("tests/test_verification.py::test_verdicts_of_neighbouring_seeds_share_no_draws",),
    ),
    WrongLine(
        "ppl_vae/verification/moments.py",
        "math.sqrt(len(left_out) - 1)",
        "1 / math.sqrt(len(left_out))",
        ("tests/test_estimators.py::test_the_error_of_a_ratio_is_its_jackknife_over_ten_batches",),
    ),
    WrongLine(
        "ppl_vae/verification/estimator_table.py",
        "shift - expected.value / data",
        "shift - expected.value",
        ("tests/test_estimators.py::test_the_value_of_each_row_is_its_bound_and_its_bias_is_within_its_error",),
    ),
    WrongLine(
        "ppl_vae/verification/exact_pair.py",
        "(prior.loc == 0).all() and (prior.scale == 1).all()",
        "(prior.scale == 1).all()",
        ("tests/test_verification.py::test_a_pair_that_is_not_linear_gaussian_is_not_taken_for_one",),
    ),
    WrongLine(
        "ppl_vae/verification/repeated_draws.py",
        "Variant(model.eval(), guide.eval(), loss)",
        "Variant(model, guide, loss)",
        ("tests/test_verification.py::test_a_frozen_pair_is_a_copy_in_eval_mode",),
    ),
    WrongLine(
        "ppl_vae/verification/memory.py",
        "max(self.peak, sum(self.held.values()))",
        "sum(self.held.values())",
        ("tests/test_estimators.py::test_the_peak_is_what_is_held_at_once",),
    ),
]

REPORT = [
    WrongLine(
        "ppl_vae/estimate.py",
        "1 - math.floor(math.log10(error))",
        "2 - math.floor(math.log10(error))",
        ("tests/test_report.py::test_a_number_is_printed_to_two_digits_of_its_error",),
    ),
    WrongLine(
        "ppl_vae/report/table.py",
        "return first if beaten == set(others) else None",
        "return first",
        ("tests/test_report.py::test_with_one_seed_the_best_is_marked_beyond_two_errors_over_data",),
    ),
    WrongLine(
        "ppl_vae/report/table.py",
        "if pair.seeds > 1:",
        "if pair.seeds > 3:",
        ("tests/test_report.py::test_with_several_seeds_the_best_is_marked_where_it_is_decided_over_seeds",),
    ),
    WrongLine(
        "ppl_vae/report/table.py",
        "mean.error_over_seeds if seeds > 1 else mean.error_over_data",
        "mean.error_over_data",
        ("tests/test_report.py::test_with_several_seeds_the_best_is_marked_where_it_is_decided_over_seeds",),
    ),
    WrongLine(
        "ppl_vae/report/contestants.py",
        "{**for_all, **for_variant, **one.options, **for_it}",
        "{**one.options, **for_all, **for_variant, **for_it}",
        ("tests/test_report.py::test_an_option_for_one_counts_more_than_its_own_and_that_more_than_one_for_all",),
    ),
    WrongLine(
        "ppl_vae/report/colours.py",
        "next((place for place in turns if place not in places.values()), turns[0])",
        "turns[0]",
        ("tests/test_report.py::test_every_contestant_has_a_colour_of_its_own",),
    ),
    WrongLine(
        "ppl_vae/studies/results.py",
        '"mass" if self.variant.support.is_discrete else "density"',
        '"density"',
        ("tests/test_report.py::test_rows_stand_in_groups_whose_bounds_compare",),
    ),
    WrongLine(
        "ppl_vae/report/pictures.py",
        "torch.stack(rows, 1).flatten(0, 2)",
        "torch.stack(rows, 0).flatten(0, 2)",
        ("tests/test_report.py::test_pictures_show_data_beside_what_is_made_of_them",),
    ),
    WrongLine(
        "ppl_vae/files.py",
        "        part.unlink(missing_ok=True)",
        "        pass",
        ("tests/test_report.py::test_a_file_is_written_whole_or_not_at_all",),
    ),
]

DIAGNOSIS = [
    WrongLine(
        "ppl_vae/diagnosis/calibration.py",
        "return below + place_among_ties",
        "return below",
        ("tests/test_diagnostics.py::test_ties_are_broken_at_random",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/calibration.py",
        "torch.full_like(statistic, (bins - 1) / 2)",
        "torch.full_like(statistic, bins / 2)",
        ("tests/test_diagnostics.py::test_a_hand_made_panel_has_the_moments_and_the_p_value_of_its_ranks",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/calibration.py",
        "only_stretched.log_likelihood > CLEAR",
        "only_stretched.log_likelihood < CLEAR",
        ("tests/test_diagnostics.py::test_a_shifted_guide_is_skewed_in_the_coordinate_that_is_shifted",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/code_usage.py",
        "return total - math.log(len(z))",
        "return total",
        ("tests/test_diagnostics.py::test_mutual_information_and_aggregate_kl_are_those_of_gaussians",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/code_usage.py",
        "mean.square() - 1 - variance.log()",
        "mean.square() - 1 - variance.sqrt().log()",
        ("tests/test_diagnostics.py::test_two_moments_of_each_unit_bound_the_aggregate_kl",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/predictive.py",
        "2 * tail.double() / (replicates + 1)",
        "tail.double() / (replicates + 1)",
        ("tests/test_diagnostics.py::test_p_values_reject_the_model_s_own_data_no_more_often_than_their_level",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/residuals.py",
        "shares[:, 5:15]",
        "shares[:, 4:15]",
        (
            "tests/test_diagnostics.py::test_noise_is_calibrated_if_the_guide_is_the_posterior_and_the_data_are_the_model_s",
        ),
    ),
    WrongLine(
        "ppl_vae/diagnosis/grades.py",
        "share * (1 - share) / rows + weight / (4 * rows)",
        "share * (1 - share) / rows",
        ("tests/test_diagnosis.py::test_the_interval_of_a_share_has_a_positive_width",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/grades.py",
        "high <= scale.bad",
        "True",
        ("ppl_vae/diagnosis/grades.py",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/diagnosis.py",
        "inflation=1.0",
        "inflation=2.0",
        ("tests/test_diagnosis.py::test_an_exact_sigma_of_an_autoencoder_is_judged_right",),
    ),
    WrongLine(
        "ppl_vae/diagnosis/inference_data.py",
        '"log_prior": drawn.prior',
        '"log_prior": drawn.guide',
        ("tests/test_inference_data.py::test_log_densities_are_in_the_data_s_units",),
    ),
]

CLI = [
    WrongLine(
        "ppl_vae/cli/__init__.py",
        "raise SystemExit(1)",
        "raise SystemExit(0)",
        ("tests/test_cli.py::test_a_failure_ends_with_1_and_one_line",),
    ),
    WrongLine(
        "ppl_vae/cli/options.py",
        "for name, value in changes.items() if value is not None}",
        "for name, value in changes.items() if value is not None and name not in origin}",
        ("tests/test_cli.py::test_an_option_of_the_data_takes_the_place_of_that_of_the_training",),
    ),
    WrongLine(
        "ppl_vae/cli/options.py",
        "            limit=self.limit,",
        "            limit=None,",
        ("tests/test_cli.py::test_the_record_hands_its_fields_to_prepare_and_fit",),
    ),
    WrongLine(
        "ppl_vae/cli/evaluation.py",
        "        data.test,",
        "        data.resident,",
        ("tests/test_cli.py::test_a_checkpoint_is_judged_on_the_rows_that_were_held_out",),
    ),
    WrongLine(
        "ppl_vae/cli/comparison.py",
        "range(first, first + seeds)",
        "range(seeds)",
        ("tests/test_cli.py::test_a_study_has_rows_for_contestants_and_seeds_and_a_second_run_repeats_none",),
    ),
    WrongLine(
        "ppl_vae/cli/interruptions.py",
        "TERMINATED if isinstance(stop, Terminated) else INTERRUPTED",
        "INTERRUPTED",
        ("tests/test_cli.py::test_a_comparison_that_is_stopped_keeps_what_is_done",),
    ),
    WrongLine(
        "ppl_vae/cli/sampling.py",
        "prior=prior, mean=mean, seed=seed",
        "prior=prior, mean=mean",
        ("tests/test_cli.py::test_samples_are_those_of_the_library",),
    ),
]

STUDIES = [
    WrongLine(
        "ppl_vae/studies/summary.py",
        "(len(order) - place) * p_values[index]",
        "len(order) * p_values[index]",
        ("tests/test_studies.py::test_holm_by_hand_and_by_its_definition",),
    ),
    WrongLine(
        "ppl_vae/studies/summary.py",
        "p < LEVEL and abs(difference) > ERRORS * (error_over_data or 0.0)",
        "p < LEVEL",
        ("tests/test_studies.py::test_a_difference_is_decided_beyond_both_errors",),
    ),
    WrongLine(
        "ppl_vae/estimate.py",
        "stdtr(count - 1, -abs(difference) / error)",
        "stdtr(count, -abs(difference) / error)",
        ("tests/test_studies.py::test_the_p_value_is_that_of_the_paired_t_test",),
    ),
    WrongLine(
        "ppl_vae/studies/claims.py",
        "claim.margin - abs(mean)",
        "claim.margin - mean",
        ("tests/test_studies.py::test_a_claim_is_held_reversed_or_undecided",),
    ),
    WrongLine(
        "ppl_vae/studies/work.py",
        "with seeded(cell.seed):\n        return builder",
        "with seeded(0):\n        return builder",
        ("tests/test_studies.py::test_a_seed_moves_the_initial_weights",),
    ),
    WrongLine(
        "ppl_vae/studies/cells.py",
        '"version": contestant.version,',
        '"version": 1,',
        ("tests/test_studies.py::test_a_finished_cell_is_not_run_again_and_a_changed_one_is",),
    ),
    WrongLine(
        "ppl_vae/studies/measures.py",
        "ex_post.fit(result.variant, result.data, 1, own.seed)",
        "ex_post.fit(result.variant, result.data, 2, own.seed)",
        ("tests/test_experiments.py::test_the_distances_of_an_experiment_are_those_of_evaluate",),
    ),
    WrongLine(
        "ppl_vae/studies/measures.py",
        "result.mixture().log_prob(z) - variant.model.prior().log_prob(z)",
        "-variant.model.prior().log_prob(z)",
        ("tests/test_experiments.py::test_the_aggregate_kl_is_that_of_two_gaussians",),
    ),
    WrongLine(
        "ppl_vae/studies/evidence.py",
        "factor * high[seed] - low[seed]",
        "high[seed] - low[seed]",
        ("tests/test_experiments.py::test_a_claim_of_no_worse_has_a_factor_and_one_of_equality_a_margin",),
    ),
    WrongLine(
        "experiments/balance.py",
        "- (own[seed] - high) / math.log(above / beta)",
        "- (own[seed] - high) / math.log(above)",
        ("tests/test_experiments.py::test_the_knee_is_the_difference_of_two_slopes",),
    ),
    WrongLine(
        "ppl_vae/conversion.py",
        'made = with_part(made, "guide", type(guide))',
        "pass",
        ("tests/test_conversion.py::test_a_converted_pair_is_loaded_by_name",),
    ),
    WrongLine(
        "ppl_vae/data/smiles.py",
        "return rings.pop(number) != atom if number in rings",
        "return rings.pop(number) != number if number in rings",
        ("tests/test_structured.py::test_the_syntax_of_other_texts_is_wrong",),
    ),
    WrongLine(
        "ppl_vae/data/characters.py",
        "                break",
        "                continue",
        ("tests/test_structured.py::test_characters_are_coded_and_read_back",),
    ),
    WrongLine(
        "experiments/structured.py",
        "float(round(DRAWS * (1 - share - unfinished[seed])))",
        "float(round(DRAWS * (share - unfinished[seed])))",
        ("tests/test_structured.py::test_claims_follow_from_rows",),
    ),
    WrongLine(
        "ppl_vae/studies/work.py",
        "if not grey or is_nominal(variant.noise) or _supports(variant, y):",
        "if not grey or _supports(variant, y):",
        ("tests/test_categories.py::test_a_study_never_draws_codes_from_scaled_ones",),
    ),
]

WRONG_LINES = [
    *MODELS,
    *GUIDES,
    *DATA,
    *ELBO,
    *SVI,
    *PAIR,
    *CHECKPOINT,
    *CONTRACTS,
    *EVALUATION,
    *TRAINING,
    *VERIFICATION,
    *STUDIES,
    *REPORT,
    *DIAGNOSIS,
    *CLI,
]


def main() -> None:
    """Try the wrong lines, print a row for each, and exit with 1 unless every one of them is noticed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="Numbers of the wrong lines to try.")
    parser.add_argument("--jobs", type=int, default=1, help="How many are tried at the same time.")
    arguments = parser.parse_args()
    chosen = {number: line for number, line in enumerate(WRONG_LINES, 1) if number in (arguments.only or [number])}
    for module in SHARED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as temporary:
        folders = [copy_of_the_tree(Path(temporary) / str(job)) for job in range(arguments.jobs)]
        tests = sorted({test for line in chosen.values() for test in line.noticed_by})
        code = finished(started(folders[0], tests))
        if code != 0:
            sys.exit((folders[0] / LOG).read_text(encoding="utf-8") + "Repair this first: no line is wrong yet.")
        print(f"{'':>4} {'outcome':<12} {'file':<42} right -> wrong")
        outcomes = tried(chosen, folders)
    noticed = sum(outcome == "noticed" for outcome in outcomes)
    print(f"{noticed} of {len(outcomes)} wrong lines are noticed.")
    sys.exit(noticed < len(outcomes))


def copy_of_the_tree(folder: Path) -> Path:
    """Copy what the tests need to a folder."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
    return shutil.copytree(ROOT, folder, symlinks=True, ignore=left_out)


def tried(chosen: dict[int, WrongLine], folders: list[Path]) -> list[str]:
    """Try wrong lines, as many at a time as there are folders; print and return the outcomes."""
    outcomes, waiting, free = list[str](), list(chosen.items()), list(folders)
    running: dict[int, tuple[ForkProcess, int, WrongLine, Path, str]] = {}
    while waiting or running:
        while waiting and free:
            number, line = waiting.pop(0)
            folder = free.pop()
            source = (folder / line.path).read_text(encoding="utf-8")
            if source.count(line.right) != 1:
                outcomes.append(f"occurs {source.count(line.right)} times")
                report(number, line, outcomes[-1])
                free.append(folder)
                continue
            (folder / line.path).write_text(source.replace(line.right, line.wrong), encoding="utf-8")
            process = started(folder, line.noticed_by)
            running[process.sentinel] = process, number, line, folder, source
        for sentinel in wait(list(running)) if running else []:
            process, number, line, folder, source = running.pop(sentinel)
            code = finished(process)
            (folder / line.path).write_text(source, encoding="utf-8")
            free.append(folder)
            outcomes.append(OUTCOMES.get(code, f"did not run: pytest ended with {code}"))
            report(number, line, outcomes[-1])
    return outcomes


def report(number: int, line: WrongLine, outcome: str) -> None:
    """Print one row of the table."""
    print(f"{number:>4} {outcome:<12} {line.path:<42} {line.right.strip()} -> {line.wrong.strip()}", flush=True)


def started(folder: Path, tests: Sequence[str]) -> ForkProcess:
    """Start tests in a process of their own; a fork, because importing torch takes longer than most tests."""
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests))
    process.start()
    return process


def finished(process: ForkProcess) -> int:
    """Wait for a process, and return its exit code."""
    process.join()
    return int(process.exitcode or 0)


def run_tests(folder: Path, tests: Sequence[str]) -> None:
    """Run tests on the library in a folder, write what pytest says to a file there, and exit as pytest does."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # a file changes more often than the time stamps of its bytecode can tell
    with open(LOG, "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code = pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests])
    sys.exit(int(code))


if __name__ == "__main__":
    main()
