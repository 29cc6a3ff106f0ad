// Gazebo's physics engine, dartsim, with a world on a pipe: no Gazebo, no ROS.
//
//   gazebo_physics PLUGIN WORLD.sdf MODEL GAIN RATE JOINT...
//
// Reads commands, a line each, with one number per JOINT [rad or m]:
//   at Q...      put the joints there
//   to N Q...    for N control periods of 1/RATE seconds, velocity GAIN * RATE * (Q - measured)
//   say          print where the joints and the free models are
// Meshes are attached as Gazebo's server does it; what the engine or a mesh loader has against one is
// on stderr.
#include <chrono>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ignition/common/Console.hh>
#include <ignition/common/Mesh.hh>
#include <ignition/common/MeshManager.hh>
#include <ignition/math/eigen3/Conversions.hh>
#include <ignition/physics/FeatureList.hh>
#include <ignition/physics/FeaturePolicy.hh>
#include <ignition/physics/ForwardStep.hh>
#include <ignition/physics/FrameSemantics.hh>
#include <ignition/physics/GetEntities.hh>
#include <ignition/physics/Joint.hh>
#include <ignition/physics/RequestEngine.hh>
#include <ignition/physics/mesh/MeshShape.hh>
#include <ignition/physics/sdf/ConstructWorld.hh>
#include <ignition/plugin/Loader.hh>
#include <sdf/Collision.hh>
#include <sdf/Geometry.hh>
#include <sdf/Link.hh>
#include <sdf/Mesh.hh>
#include <sdf/Model.hh>
#include <sdf/Physics.hh>
#include <sdf/Root.hh>
#include <sdf/Visual.hh>
#include <sdf/World.hh>

namespace physics = ignition::physics;

using Features = physics::FeatureList<
  physics::ForwardStep, physics::GetEntities, physics::LinkFrameSemantics,
  physics::GetBasicJointState, physics::SetBasicJointState,
  physics::SetJointVelocityCommandFeature, physics::mesh::AttachMeshShapeFeature,
  physics::sdf::ConstructSdfWorld>;

const ignition::common::Mesh & load(const std::string & folder, const sdf::Geometry & geometry)
{
  const auto path = folder + geometry.MeshShape()->Uri();
  const auto * mesh = ignition::common::MeshManager::Instance()->Load(path);
  if (mesh == nullptr) {
    throw std::runtime_error("cannot load " + path);
  }
  return *mesh;
}

template<typename Link>
void attach_meshes(const std::string & folder, const sdf::Link & described, Link & link)
{
  for (uint64_t k = 0; k < described.VisualCount(); ++k) {
    const auto & geometry = *described.VisualByIndex(k)->Geom();
    if (geometry.Type() == sdf::GeometryType::MESH) {
      load(folder, geometry);
    }
  }
  for (uint64_t k = 0; k < described.CollisionCount(); ++k) {
    const auto & collision = *described.CollisionByIndex(k);
    if (collision.Geom()->Type() == sdf::GeometryType::MESH) {
      ignition::math::Pose3d pose;
      collision.SemanticPose().Resolve(pose, described.Name());
      link->AttachMeshShape(
        collision.Name(), load(folder, *collision.Geom()), ignition::math::eigen3::convert(pose));
    }
  }
}

int run(const std::vector<std::string> & given)
{
  const auto & file = given.at(1);
  const auto & arm = given.at(2);
  const double gain = std::stod(given.at(3)), rate = std::stod(given.at(4));
  sdf::Root root;
  for (const auto & error : root.Load(file)) {
    throw std::runtime_error(error.Message());
  }
  const auto & described = *root.WorldByIndex(0);

  ignition::plugin::Loader loader;
  loader.LoadLib(given.at(0));
  auto engine = physics::RequestEngine<physics::FeaturePolicy3d, Features>::From(
    loader.Instantiate("ignition::physics::dartsim::Plugin"));
  if (!engine) {
    throw std::runtime_error(given.at(0) + " is no dartsim");
  }
  ignition::common::Console::SetVerbosity(0);  // it says that meshes are not attached here
  auto world = engine->ConstructWorld(described);
  ignition::common::Console::SetVerbosity(2);
  const auto folder = file.substr(0, file.rfind('/') + 1);
  for (uint64_t m = 0; m < described.ModelCount(); ++m) {
    const auto & model = *described.ModelByIndex(m);
    for (uint64_t k = 0; k < model.LinkCount(); ++k) {
      const auto & link = *model.LinkByIndex(k);
      auto here = world->GetModel(model.Name())->GetLink(link.Name());
      attach_meshes(folder, link, here);
    }
  }

  std::vector<decltype(world->GetModel(arm)->GetJoint(0))> joints;
  for (size_t k = 5; k < given.size(); ++k) {
    joints.push_back(world->GetModel(arm)->GetJoint(given[k]));
    if (!joints.back()) {
      throw std::runtime_error(arm + " has no joint " + given[k]);
    }
  }
  const double period = described.PhysicsByIndex(0)->MaxStepSize();
  const auto steps = std::lround(1.0 / (rate * period));
  physics::ForwardStep::Input input;
  physics::ForwardStep::Output output;
  physics::ForwardStep::State state;
  input.Get<std::chrono::steady_clock::duration>() =
    std::chrono::duration_cast<std::chrono::steady_clock::duration>(
    std::chrono::duration<double>(period));

  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    int periods = 0;
    words >> command;
    if (command == "say") {
      std::cout << "joints";
      for (auto & joint : joints) {
        std::cout << " " << joint->GetPosition(0);
      }
      std::cout << "\n";
      for (uint64_t m = 0; m < described.ModelCount(); ++m) {
        const auto & model = *described.ModelByIndex(m);
        if (!model.Static() && model.Name() != arm) {
          const auto pose = world->GetModel(model.Name())->GetLink(0)->FrameDataRelativeToWorld();
          std::cout << model.Name() << " " << pose.pose.translation().transpose() << "\n";
        }
      }
      continue;
    }
    if (command == "to") {
      words >> periods;
    }
    std::vector<double> wanted(joints.size());
    for (auto & value : wanted) {
      words >> value;
    }
    if (!words || (command != "at" && command != "to")) {
      throw std::runtime_error("not understood: " + line);
    }
    for (size_t k = 0; command == "at" && k < joints.size(); ++k) {
      joints[k]->SetPosition(0, wanted[k]);
    }
    for (int n = 0; n < periods; ++n) {
      std::vector<double> speeds;
      for (size_t k = 0; k < joints.size(); ++k) {
        speeds.push_back(gain * rate * (wanted[k] - joints[k]->GetPosition(0)));
      }
      for (int64_t step = 0; step < steps; ++step) {
        for (size_t k = 0; k < joints.size(); ++k) {
          joints[k]->SetVelocityCommand(0, speeds[k]);
        }
        world->Step(output, state, input);
      }
    }
  }
  return 0;
}

int main(int argc, char ** argv)
{
  try {
    return run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception & error) {
    std::cerr << "error: " << error.what() << "\n";
    return 2;
  }
}
