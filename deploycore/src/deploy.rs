//! From a deployable artifact to goals in every region: the deployer, the mirror and the board of machine reports.
