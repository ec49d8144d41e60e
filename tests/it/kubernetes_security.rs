//! What the manifests of `k8s/` let pods do, and what of secrets is in them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use feedlens::image::guard::AddressPolicy;
use ipnet::IpNet;
use serde_json::Value;

use crate::kubernetes::{Overlay, Started, documents, list, text};

/// What the `restricted` Pod Security profile refuses of a pod, and what its containers may not have for other reasons.
fn refusals(pod: &Value) -> Vec<String> {
    let mut refusals = vec![];
    let mut refuse = |wrong: bool, what: &str| {
        if wrong {
            refusals.push(what.to_owned());
        }
    };
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        refuse(pod[key] == true, key);
    }
    let of_pod = &pod["securityContext"];
    refuse(!of_pod["sysctls"].is_null(), "sysctls");
    let kinds =
        ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    for volume in list(&pod["volumes"]) {
        let kind = volume.as_object().expect("a volume").keys().find(|key| *key != "name").expect("a kind");
        refuse(!kinds.contains(&kind.as_str()), kind);
    }
    for container in ["initContainers", "containers"].iter().flat_map(|key| list(&pod[key])) {
        let context = &container["securityContext"];
        let either = |key: &str| if context[key].is_null() { &of_pod[key] } else { &context[key] };
        refuse(context["privileged"] == true, "privileged");
        refuse(context["allowPrivilegeEscalation"] != false, "allowPrivilegeEscalation");
        refuse(either("runAsNonRoot") != true, "runAsNonRoot");
        refuse(either("runAsUser").as_u64().is_none_or(|user| user == 0), "runAsUser");
        refuse(!list(&context["capabilities"]["drop"]).contains(&Value::from("ALL")), "capabilities");
        let added = list(&context["capabilities"]["add"]);
        refuse(added.iter().any(|added| added != "NET_BIND_SERVICE"), "capabilities");
        let profile = &either("seccompProfile")["type"];
        refuse(profile != "RuntimeDefault" && profile != "Localhost", "seccompProfile");
        refuse(!context["procMount"].is_null(), "procMount");
        refuse(list(&container["ports"]).iter().any(|port| !port["hostPort"].is_null()), "hostPort");
        // Beyond the profile.
        refuse(context["readOnlyRootFilesystem"] != true, "readOnlyRootFilesystem");
        for bound in ["requests", "limits"] {
            for resource in ["cpu", "memory"] {
                refuse(container["resources"][bound][resource].is_null(), "resources");
            }
        }
    }
    refuse(pod["automountServiceAccountToken"] != false, "automountServiceAccountToken");
    // Variables of Services are settings to Kafka's image, and noise to all.
    refuse(pod["enableServiceLinks"] != false, "enableServiceLinks");
    refusals
}

#[test]
fn every_pod_fits_the_restricted_profile() {
    for overlay in Overlay::all() {
        let labels = &overlay.find("Namespace", "feedlens")["metadata"]["labels"];
        assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted", "{}", overlay.name);
        let mut pods = 0;
        for (name, pod) in overlay.pods() {
            assert_eq!(refusals(pod), Vec::<String>::new(), "{name}");
            pods += 1;
            // And each of the rules is one that its breach breaks.
            let mut broken = pod.clone();
            broken["hostNetwork"] = true.into();
            broken["securityContext"]["runAsNonRoot"] = Value::Null;
            broken["containers"][0]["securityContext"]["capabilities"] = Value::Null;
            broken["volumes"][0] = serde_json::json!({"name": "host", "hostPath": {"path": "/"}});
            let expected = ["hostNetwork", "hostPath", "runAsNonRoot", "capabilities"];
            assert_eq!(refusals(&broken), expected, "{name}");
        }
        assert!(pods >= 3, "{}: {pods}", overlay.name);
        let namespaced = overlay.resources.iter().filter(|resource| resource["kind"] != "Namespace");
        for resource in namespaced {
            assert_eq!(resource["metadata"]["namespace"], "feedlens", "{}", resource["metadata"]["name"]);
        }
    }
}

#[test]
fn images_are_of_this_version_and_of_the_devices_that_are_asked_for() {
    for overlay in Overlay::all() {
        for (name, pod) in overlay.pods() {
            let container = &pod["containers"][0];
            let Some(started) = Started::of(&overlay, pod) else { continue };
            let gpus = !container["resources"]["limits"]["nvidia.com/gpu"].is_null();
            let device = if gpus { "cuda" } else { "cpu" };
            assert_eq!(container["image"], format!("feedlens:{}-{device}", env!("CARGO_PKG_VERSION")), "{name}");
            let encoder = &started.resolved()["encoder"];
            assert_eq!(encoder["providers"][0].as_str(), Some(device), "{name}");
            assert_eq!(
                encoder["require"].as_bool(),
                Some(gpus),
                "{name}: without a GPU it would go on a tenth as fast"
            );
            let tolerates = list(&pod["tolerations"]).iter().any(|taint| taint["key"] == "nvidia.com/gpu");
            assert_eq!(tolerates && !pod["nodeSelector"].is_null(), gpus, "{name}");
        }
        let gpu_workers = overlay.pods().filter(|(_, pod)| !pod["tolerations"].is_null()).count();
        assert_eq!(gpu_workers > 0, overlay.name == "gpu", "{}", overlay.name);
    }
}

#[test]
fn models_are_in_the_image_or_mounted() {
    for overlay in Overlay::all() {
        for (name, pod) in overlay.pods() {
            let Some(started) = Started::of(&overlay, pod) else { continue };
            let config = started.resolved();
            let dir = config["model"]["dir"].as_str().unwrap();
            let baked = dir.starts_with("/usr/share/feedlens/models/");
            let mounts = list(&pod["containers"][0]["volumeMounts"]);
            let mounted = mounts.iter().any(|mount| dir.starts_with(&format!("{}/", text(&mount["mountPath"]))));
            assert!(baked || mounted || name.ends_with("produce"), "{name}: {dir}");
        }
    }
}

#[test]
fn secrets_are_named_and_never_rendered() {
    let mut example = BTreeSet::new();
    for secret in documents("k8s/secrets.example.yaml") {
        for key in secret["stringData"].as_object().expect("stringData").keys() {
            example.insert((text(&secret["metadata"]["name"]).to_owned(), key.clone()));
        }
    }
    let mut named = BTreeSet::new();
    for overlay in Overlay::all() {
        assert_eq!(overlay.of_kind("Secret").count(), 0, "{}", overlay.name);
        for (_, pod) in overlay.pods() {
            for variable in list(&pod["containers"][0]["env"]) {
                let key = &variable["valueFrom"]["secretKeyRef"];
                if key.is_object() {
                    named.insert((text(&key["name"]).to_owned(), text(&key["key"]).to_owned()));
                }
                let name = text(&variable["name"]);
                let is_secret = ["PASSWORD", "USERNAME", "API_KEY", "SECRET"].iter().any(|part| name.ends_with(part));
                assert_eq!(is_secret, key.is_object(), "{}: {name}", overlay.name);
            }
            for secret in list(&pod["volumes"]).iter().map(|volume| &volume["secret"]) {
                for item in list(&secret["items"]) {
                    named.insert((text(&secret["secretName"]).to_owned(), text(&item["key"]).to_owned()));
                }
            }
        }
        for authentication in overlay.of_kind("TriggerAuthentication") {
            let trigger = &overlay.find("ScaledObject", "ingest")["spec"]["triggers"][0];
            assert_eq!(trigger["authenticationRef"]["name"], authentication["metadata"]["name"], "{}", overlay.name);
            for target in list(&authentication["spec"]["secretTargetRef"]) {
                assert!(
                    named.contains(&(text(&target["name"]).to_owned(), text(&target["key"]).to_owned())),
                    "{target}"
                );
            }
        }
    }
    assert_eq!(named, example);
}

/// The egress rules of the policies that select a component, and the ports that they name.
fn egress<'a>(overlay: &'a Overlay, policy: &str) -> &'a [Value] {
    list(&overlay.find("NetworkPolicy", policy)["spec"]["egress"])
}

#[test]
fn pictures_may_come_from_where_the_guard_lets_them() {
    let guard = AddressPolicy::default();
    for overlay in Overlay::all() {
        let rules = egress(&overlay, "to-pictures")[0]["to"].as_array().expect("peers");
        let network = |value: &Value| text(value).parse::<IpNet>().expect("a network");
        let blocks = rules.iter().map(|peer| {
            let excepted = list(&peer["ipBlock"]["except"]).iter().map(network).collect::<Vec<_>>();
            (network(&peer["ipBlock"]["cidr"]), excepted)
        });
        let blocks = blocks.collect::<Vec<_>>();
        let lets = |address: IpAddr| {
            blocks.iter().any(|(cidr, excepted)| {
                cidr.contains(&address) && !excepted.iter().any(|network| network.contains(&address))
            })
        };
        // Of IPv4, one address in each /20; the ends of each exception; and its neighbours.
        let mut addresses =
            (0..1u32 << 20).map(|block| IpAddr::from(Ipv4Addr::from_bits(block << 12))).collect::<Vec<_>>();
        for excepted in blocks.iter().flat_map(|(_, excepted)| excepted) {
            let (first, last) = (excepted.network(), excepted.broadcast());
            addresses.extend([first, last]);
            if let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) {
                let around = [first.to_bits().wrapping_sub(1), last.to_bits().wrapping_add(1)];
                addresses.extend(around.map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))));
            }
        }
        let named = ["::1", "fd00:ec2::254", "fe80::1", "64:ff9b::10.0.0.1", "::ffff:10.0.0.1", "2606:4700::1111"];
        addresses.extend(named.map(|address| address.parse::<IpAddr>().unwrap()));
        for address in addresses {
            // 6to4 and its like end at an IPv4 address, which the guard looks at and a policy cannot.
            let narrower = matches!(address, IpAddr::V6(address) if address.segments()[0] == 0x2002);
            let [policy, guard] = [lets(address), guard.permits(address)];
            assert!(policy == guard || (narrower && !policy), "{}: {address}: {policy}, guard {guard}", overlay.name);
        }
    }
}

#[test]
fn nothing_passes_but_what_a_policy_names() {
    for overlay in Overlay::all() {
        let denied = &overlay.find("NetworkPolicy", "default-deny")["spec"];
        assert!(denied["podSelector"].as_object().is_some_and(serde_json::Map::is_empty));
        assert_eq!(list(&denied["policyTypes"]), ["Ingress", "Egress"]);
        assert!(denied["ingress"].is_null() && denied["egress"].is_null());
        // Where the workers are sent is where they may go.
        let (pod, ports) = (&overlay.find("Deployment", "ingest")["spec"]["template"]["spec"], |policy| {
            let rules = egress(&overlay, policy).iter().flat_map(|rule| list(&rule["ports"]));
            rules.filter_map(|port| port["port"].as_u64()).collect::<Vec<_>>()
        });
        let config = Started::of(&overlay, pod).expect("ours").resolved();
        let port = |address: &str| address.rsplit_once(':').expect("a port").1.parse::<u64>().expect("a port");
        for broker in config["kafka"]["brokers"].as_str().unwrap().split(',') {
            assert!(ports("to-kafka").contains(&port(broker)), "{}: {broker}", overlay.name);
        }
        let url = config["store"]["qdrant"]["url"].as_str().unwrap();
        assert!(ports("to-qdrant").contains(&port(url)), "{}: {url}", overlay.name);
    }
}
